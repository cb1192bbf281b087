"""The matrix product, by whichever of PyTorch's two libraries is the faster on this processor.

PyTorch multiplies float32 matrices with MKL, Intel's library, and runs its own `torch.nn.LSTM` on another, oneDNN. On
AMD's processors MKL leaves speed unused, and a hand-written cell that multiplies with it starts behind: there the
product is oneDNN's. `python -m eecs598.bench --rows products` times one against the other.
"""

import functools
import platform
from pathlib import Path

import torch


def product(a, b):
    """a b, for matrices: oneDNN's where it is the faster, else PyTorch's. Autograd can record it."""
    if onednn_is_faster() and fits(a, b):
        return by_onednn(a, b)
    return torch.mm(a, b)


def by_onednn(a, b):
    """a b by oneDNN, for matrices that it `fits`. Its linear layer keeps a weight as (out, in), b is (in, out)."""
    return torch.ops.mkldnn._linear_pointwise(a, b.t(), None, "none", [], "")


def fits(a, b):
    """Whether `by_onednn` multiplies these: float32 on the CPU, of sizes that go together, not recorded by autograd."""
    if torch.is_grad_enabled() and (a.requires_grad or b.requires_grad):
        return False
    return a.is_cpu and b.is_cpu and a.dtype == b.dtype == torch.float32 and a.shape[1] == len(b) > 0


@functools.cache
def onednn_is_faster():
    """Whether this is a processor of AMD's, and PyTorch has both libraries."""
    cpuinfo = Path("/proc/cpuinfo")  # Linux; Windows names the vendor through platform
    vendor = cpuinfo.read_text() if cpuinfo.exists() else platform.processor()
    both = torch.backends.mkl.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return both and "AuthenticAMD" in vendor
