"""The bridge to autograd: a hand-written forward and backward as one node of its graph."""

import torch
from torch.autograd.function import once_differentiable
from torch.utils._pytree import tree_flatten, tree_unflatten

from eecs598.shapes import blame_shapes


def by_hand(forward, backward, *inputs):
    """Call forward(*inputs) as one differentiable operation, whose gradient autograd computes with `backward`.

    forward(*inputs) returns the output first and a cache last: tensors and other values in nested tuples, lists and
    dicts. backward(doutput, cache) returns the gradient of each input, or a single tensor for one input; trailing
    inputs without a gradient may be left out. Autocast is off inside, so that forward and backward use the same
    precision. Raises ValueError if `forward` fails on inputs whose shapes contradict its docstring.
    """
    device = next(value for value in inputs if torch.is_tensor(value)).device
    with torch.autocast(device.type, enabled=False):
        try:
            return _ByHand.apply(forward, backward, *inputs)
        except (RuntimeError, IndexError) as error:
            sentence = blame_shapes(error)
            if sentence is None:
                raise
            raise ValueError(sentence) from error


class _ByHand(torch.autograd.Function):
    @staticmethod
    def forward(ctx, forward, backward, *inputs):
        output, *_, cache = forward(*inputs)
        leaves, ctx.structure = tree_flatten(cache)
        # With save_for_backward, autograd frees the tensors, and detects in-place changes before the backward.
        ctx.save_for_backward(*(leaf if torch.is_tensor(leaf) else None for leaf in leaves))
        ctx.others = [None if torch.is_tensor(leaf) else leaf for leaf in leaves]
        ctx.backward_by_hand, ctx.count = backward, len(inputs)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, doutput):
        leaves = [other if tensor is None else tensor for tensor, other in zip(ctx.saved_tensors, ctx.others)]
        with torch.autocast(doutput.device.type, enabled=False):
            gradients = ctx.backward_by_hand(doutput, tree_unflatten(leaves, ctx.structure))
        gradients = gradients if isinstance(gradients, (tuple, list)) else (gradients,)
        return None, None, *gradients, *[None] * (ctx.count - len(gradients))
