"""The bridge to autograd: a forward and a backward that are written by hand, as one node of its graph."""

import torch
from torch.autograd.function import once_differentiable
from torch.utils._pytree import tree_flatten, tree_unflatten


def by_hand(forward, backward, *inputs):
    """forward(*inputs), which autograd then differentiates by `backward` and by nothing else.

    forward(*inputs) returns an output, whatever else, and last a cache: tensors and other values in any nest of
    tuples, lists and dicts. backward(doutput, cache) returns the gradient of each input, or a single tensor for one
    input; inputs at the end that have no gradient may be left out. Products keep the precision of the inputs, under
    autocast too, so that forward and backward compute alike.
    """
    device = next(value for value in inputs if torch.is_tensor(value)).device
    with torch.autocast(device.type, enabled=False):
        return _ByHand.apply(forward, backward, *inputs)


class _ByHand(torch.autograd.Function):
    @staticmethod
    def forward(ctx, forward, backward, *inputs):
        output, *_, cache = forward(*inputs)
        leaves, ctx.structure = tree_flatten(cache)
        # Tensors go through save_for_backward, so that autograd frees them and notices weights changed in between.
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
