"""The two operations in which a cell spends its time on a CPU, each by the fastest of the ways that PyTorch has.

The matrix product. PyTorch multiplies float32 matrices with one library, MKL where it has it, and runs its own
`torch.nn.LSTM` on another, oneDNN. Which is the faster depends on the processor and on the sizes.

The hyperbolic tangent. On some processors PyTorch's sigmoid takes a fraction of the time of its tanh, and one is the
other, stretched; on others it is the slower way.

Each is tried at the sizes in use (`eecs598.choosing`). `python -m eecs598.bench --rows arithmetic` times the way that
is taken against PyTorch's own.
"""

from functools import partial

import torch

from eecs598.choosing import choose

HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def product(a, b):
    """a b, for matrices. Autograd can record it."""
    if _onednn_multiplies(a, b) and choose("product", partial(_ways_to_multiply, a, b), *_sizes(a, b)) == "onednn":
        return _multiply_by_onednn(a, b)
    return torch.mm(a, b)


def add_product_(out, a, b):
    """out + a b, in place."""
    if _onednn_multiplies(a, b) and choose("added-product", partial(_ways_to_add, a, b), *_sizes(a, b)) == "onednn":
        return out.add_(_multiply_by_onednn(a, b))
    return out.addmm_(a, b)


def tanh_(x):
    """tanh x, in place. Autograd can record it.

    By the sigmoid, where that is faster, it is within 2.4e-7. That way is for float32 on a CPU only: in half precision
    small values would be lost, and on a GPU it would be four kernels instead of one.
    """
    may_choose = x.is_cpu and x.dtype == torch.float32 and not _recorded(x)
    if may_choose and choose("tanh", partial(_ways_to_tanh, x), _about(x.numel())) == "sigmoid":
        return _stretch_sigmoid_(x)
    return x.tanh_()


def _onednn_multiplies(a, b):
    """Whether it can: float32 on a CPU, of sizes that go together. The error for sizes that do not is PyTorch's."""
    on_cpu = HAS_ONEDNN and a.is_cpu and b.is_cpu and not _recorded(a, b)
    return on_cpu and a.dtype == b.dtype == torch.float32 and a.shape[1] == len(b) > 0


def _multiply_by_onednn(a, b):
    # its linear layer keeps a weight as (out, in), b is (in, out)
    return torch.ops.mkldnn._linear_pointwise(a, b.t(), None, "none", [], "")


def _ways_to_multiply(a, b):
    return {"torch": partial(torch.mm, a, b), "onednn": partial(_multiply_by_onednn, a, b)}


def _ways_to_add(a, b):
    out = a.new_zeros(len(a), b.shape[1])
    return {"torch": partial(out.addmm_, a, b), "onednn": lambda: out.add_(_multiply_by_onednn(a, b))}


def _sizes(a, b):
    return _about(len(a)), *b.shape, *(() if b.is_contiguous() else ("transposed",))


def _ways_to_tanh(x):
    return {"torch": lambda: x.clone().tanh_(), "sigmoid": lambda: _stretch_sigmoid_(x.clone())}


def _stretch_sigmoid_(x):
    """tanh x = 2 sigmoid(2 x) - 1."""
    return x.mul_(2).sigmoid_().mul_(2).sub_(1)


def _about(number):
    """The next power of two: batches of about the same size have one choice between them."""
    return 1 << (number - 1).bit_length()


def _recorded(*tensors):
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
