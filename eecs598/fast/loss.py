"""The output layer and the loss as one operation, computed blockwise.

The scores of all words are the largest matrix of a training step. Here, a block of states at a time, the scores are
overwritten with their gradient, softmax minus target, which is accumulated into dh, dW and db at once. So the whole
matrix never exists, and a block fits into the processor's cache.
"""

import math

import torch

from eecs598.bridge import by_hand
from eecs598.fast.arithmetic import product
from eecs598.fast.layers import in_autocast_precision

BLOCK_ROWS = 256  # states per block


def word_loss(h, W, b, y, weights=None, smoothing=0.0, banned=()):
    """The weighted sum of cross-entropies, sum over p of weights[p] * -log softmax(W h[p] + b)[y[p]].

    h (P, H); W (V, H) and b (V,), as in nn.Linear; y (P,) int64. weights (P,): None means 1. smoothing: label
    smoothing, the part of the target distribution that is uniform. banned: ids of words with probability 0. Returns a
    scalar, in float32 or higher precision.
    """
    weights = torch.ones(len(y), device=y.device) if weights is None else weights
    banned = torch.tensor(banned, dtype=torch.int64, device=y.device)
    tensors = in_autocast_precision(h, W, b)
    return by_hand(_forward, _backward, *tensors, y, weights, smoothing, banned, torch.is_grad_enabled())


def _forward(h, W, b, y, weights, smoothing, banned, needs_grad):
    """The loss and, as its cache, the gradients dh, dW and db if needs_grad."""
    loss = torch.zeros((), dtype=torch.promote_types(h.dtype, torch.float32), device=h.device)
    dh, dW, db = torch.empty_like(h), torch.zeros_like(W), torch.zeros_like(b)
    rows = (h, y.unsqueeze(1), weights.to(loss.dtype).unsqueeze(1), dh)
    for h_block, target, weight, dh_block in zip(*(each.split(BLOCK_ROWS) for each in rows)):
        scores = product(h_block, W.t(), b).to(loss.dtype)
        log_probs = scores.index_fill_(1, banned, -math.inf).log_softmax(1)
        target_log_probs = log_probs.gather(1, target)
        if smoothing:
            target_log_probs = (1 - smoothing) * target_log_probs + smoothing * log_probs.mean(1, keepdim=True)
        loss -= (weight * target_log_probs.masked_fill(weight == 0, 0)).sum()
        if needs_grad:
            dscores = log_probs.exp_().sub_(smoothing / len(W))
            dscores.scatter_add_(1, target, dscores.new_full((), smoothing - 1).expand_as(target))
            dscores = dscores.mul_(weight).to(h.dtype)
            dh_block.copy_(product(dscores, W))
            dW.addmm_(dscores.t(), h_block)
            db += dscores.sum(0)
    return loss, (dh, dW, db)


def _backward(dloss, gradients):
    return tuple(dloss * gradient for gradient in gradients)
