"""The two operations in which a cell spends its time on a CPU, each by the fastest of the ways that PyTorch has.

The matrix product. PyTorch multiplies float32 matrices with MKL, Intel's library, and runs its own `torch.nn.LSTM` on
another, oneDNN. On AMD's processors MKL leaves speed unused, and a cell written by hand that multiplies with it starts
behind: there the product is oneDNN's.

The hyperbolic tangent. PyTorch's sigmoid takes a fraction of the time of its tanh, and one is the other, stretched.

`python -m eecs598.bench --rows arithmetic` times each against PyTorch's own.
"""

import functools
import platform
from pathlib import Path

import torch


def product(a, b):
    """a b, for matrices: oneDNN's where that is the faster, else PyTorch's. Autograd can record it."""
    if onednn_is_faster() and _suits_onednn(a, b) and not _recorded(a, b):
        # its linear layer keeps a weight as (out, in), b is (in, out)
        return torch.ops.mkldnn._linear_pointwise(a, b.t(), None, "none", [], "")
    return torch.mm(a, b)


def tanh_(x):
    """tanh x = 2 sigmoid(2 x) - 1, in place. Autograd can record it.

    In float32 within 2.4e-7. In half precision, where small values would be lost, and on a GPU, where it would be
    four kernels instead of one, it is PyTorch's.
    """
    if x.is_cpu and x.dtype in (torch.float32, torch.float64) and not _recorded(x):
        return x.mul_(2).sigmoid_().mul_(2).sub_(1)
    return x.tanh_()


@functools.cache
def onednn_is_faster():
    """Whether this is a processor of AMD's, and PyTorch has both libraries."""
    cpuinfo = Path("/proc/cpuinfo")  # Linux; Windows names the vendor through platform
    vendor = cpuinfo.read_text() if cpuinfo.exists() else platform.processor()
    both = torch.backends.mkl.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return both and "AuthenticAMD" in vendor


def _suits_onednn(a, b):
    """float32 on the CPU, of sizes that go together: the error for sizes that do not is PyTorch's."""
    return a.is_cpu and b.is_cpu and a.dtype == b.dtype == torch.float32 and a.shape[1] == len(b) > 0


def _recorded(*tensors):
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
