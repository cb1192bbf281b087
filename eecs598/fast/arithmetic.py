"""Matrix products and tanh, in which a cell spends its time on a CPU, with the fastest implementation.

PyTorch multiplies float32 matrices with one library (MKL, if available), but runs `torch.nn.LSTM` on another, oneDNN.
Which one is faster depends on the processor and on the sizes. On some processors, PyTorch's sigmoid is much faster than
its tanh, so that tanh x = 2 sigmoid(2 x) - 1 is the faster formula; on others it is slower.

The implementations are timed at the sizes in use (`eecs598.choosing`). `python -m eecs598.bench --rows arithmetic`
compares the chosen one with PyTorch's default.
"""

from functools import partial

import torch

from eecs598.choosing import choose

MINUS_ONE = torch.tensor(-1.0)
HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def product(a, b, bias=None):
    """The matrix product a b, plus a bias for each column. Differentiable by autograd."""
    if _onednn_supports(a, b) and choose("product", partial(_product_candidates, a, b), *_sizes(a, b)) == "onednn":
        return _multiply_by_onednn(a, b, bias)
    return torch.mm(a, b) if bias is None else torch.addmm(bias, a, b)


def add_product_(out, a, b):
    """out + a b, in place."""
    if _onednn_supports(a, b) and choose("added-product", partial(_add_candidates, a, b), *_sizes(a, b)) == "onednn":
        return out.add_(_multiply_by_onednn(a, b))
    return out.addmm_(a, b)


def tanh(x, out=None):
    """tanh x, in `out` if it is given, which may be x itself. Without it, differentiable by autograd.

    If computed from the sigmoid, the error is below 2.4e-7. This is only for float32 on a CPU: half precision would
    lose small values, and a GPU would need three kernels instead of one.
    """
    may_choose = x.is_cpu and x.dtype == torch.float32 and not _recorded(x)
    if may_choose and choose("tanh", partial(_tanh_candidates, x), _next_power(x.numel())) == "sigmoid":
        return _tanh_by_sigmoid(x, out)
    return torch.tanh(x, out=out)


def _onednn_supports(a, b):
    """Whether oneDNN can be used: for float32 on a CPU. If the sizes do not match, PyTorch raises the error."""
    on_cpu = HAS_ONEDNN and a.is_cpu and b.is_cpu and not _recorded(a, b)
    return on_cpu and a.dtype == b.dtype == torch.float32 and a.shape[1] == len(b) > 0


def _multiply_by_onednn(a, b, bias=None):
    # its linear layer takes the weight as (out, in)
    return torch.ops.mkldnn._linear_pointwise(a, b.t(), bias, "none", [], "")


def _product_candidates(a, b):
    return {"torch": partial(torch.mm, a, b), "onednn": partial(_multiply_by_onednn, a, b)}


def _add_candidates(a, b):
    out = a.new_zeros(len(a), b.shape[1])
    return {"torch": partial(out.addmm_, a, b), "onednn": lambda: out.add_(_multiply_by_onednn(a, b))}


def _sizes(a, b):
    transposed = tuple(name for name, factor in (("a", a), ("b", b)) if not factor.is_contiguous())
    return _next_power(len(a)), _next_power(len(b)), b.shape[1], *transposed


def _tanh_candidates(x):
    out = torch.empty_like(x)
    return {"torch": lambda: torch.tanh(x, out=out), "sigmoid": lambda: _tanh_by_sigmoid(x, out)}


def _tanh_by_sigmoid(x, out=None):
    """tanh x = 2 sigmoid(2 x) - 1."""
    out = torch.mul(x, 2, out=out).sigmoid_()
    return torch.add(MINUS_ONE, out, alpha=2, out=out)


def _next_power(number):
    """The next power of two, so that batches of similar size share a choice."""
    return 1 << (number - 1).bit_length()


def _recorded(*tensors):
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
