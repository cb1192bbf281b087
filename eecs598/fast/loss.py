"""The affine map to the vocabulary and the loss as one node, a block of states at a time.

The scores of all words are the largest matrix of a training step. Here a block of states gets its scores, which become
their own gradient, softmax minus target, and go on into dh, dW and db before the next block has any: so they never
exist all at once, and a block's stay in the processor's cache.
"""

import math

import torch

from eecs598.bridge import by_hand
from eecs598.fast.arithmetic import product
from eecs598.fast.layers import in_autocast_precision

SCORED_ROWS = 256  # states whose scores exist at a time


def word_loss(h, W, b, y, weights=None, smoothing=0.0, banned=()):
    """The sum over p of weights[p] times the cross-entropy of softmax(W h[p] + b) with the word y[p].

    h (P, H), W (V, H) and b (V,), as nn.Linear keeps them; y (P,) int64. weights (P,): a factor for each state; None:
    all 1. smoothing: the share of the target's probability that is spread over all words. banned: ids of words whose
    probability is 0. Returns a scalar, in float32 at least.
    """
    weights = torch.ones(len(y), device=y.device) if weights is None else weights
    banned = torch.tensor(banned, dtype=torch.int64, device=y.device)
    tensors = in_autocast_precision(h, W, b)
    return by_hand(_forward, _backward, *tensors, y, weights, smoothing, banned, torch.is_grad_enabled())


def _forward(h, W, b, y, weights, smoothing, banned, learning):
    """The loss, and as its cache the gradients dh, dW and db; learning: whether they are wanted."""
    loss = torch.zeros((), dtype=torch.promote_types(h.dtype, torch.float32), device=h.device)
    dh, dW, db = torch.empty_like(h), torch.zeros_like(W), torch.zeros_like(b)
    rows = (h, y.unsqueeze(1), weights.to(loss.dtype).unsqueeze(1), dh)
    for h_block, target, weight, dh_block in zip(*(each.split(SCORED_ROWS) for each in rows)):
        scores = product(h_block, W.t()).add_(b).to(loss.dtype)
        log_probs = scores.index_fill_(1, banned, -math.inf).log_softmax(1)
        right = log_probs.gather(1, target)
        if smoothing:
            right = (1 - smoothing) * right + smoothing * log_probs.mean(1, keepdim=True)
        loss -= (weight * right.masked_fill(weight == 0, 0)).sum()
        if learning:
            dscores = log_probs.exp_().sub_(smoothing / len(W))
            dscores.scatter_add_(1, target, dscores.new_full((), smoothing - 1).expand_as(target))
            dscores = dscores.mul_(weight).to(h.dtype)
            dh_block.copy_(product(dscores, W))
            dW.addmm_(dscores.t(), h_block)
            db += dscores.sum(0)
    return loss, (dh, dW, db)


def _backward(dloss, gradients):
    return tuple(dloss * gradient for gradient in gradients)
