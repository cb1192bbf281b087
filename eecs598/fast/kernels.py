"""Fused kernels for the elementwise part of an LSTM step on CUDA GPUs, in Triton, which comes with torch for CUDA.

Between two matrix products, an LSTM step has a dozen elementwise operations. On a GPU each one is a kernel launch,
which takes longer than its arithmetic, and an extra pass over memory. Here one kernel computes the next state from the
pre-activations in registers, BLOCK units of a row per program. The formulas are those of rnn_lstm_captioning.py,
computed in float32 for any dtype.
"""

import torch

try:
    import triton
    import triton.language as tl
except ImportError:  # torch for CPU, macOS, Windows
    triton = None

BLOCK = 512  # units per program


def fits(tensor):
    """Whether the kernels support this tensor: on CUDA with Triton, and not float64."""
    return triton is not None and tensor.is_cuda and tensor.dtype is not torch.float64


def cell_forward_(a, prev_c, next_h):
    """Overwrite pre-activations a (n, 4H) with the gates i, f, o, g, and fill next_h (n, H). Returns next_c (n, H)."""
    n, H = prev_c.shape
    next_c = prev_c.new_empty(n, H)
    with torch.cuda.device_of(a):  # Triton launches on the current device
        _forward[n, triton.cdiv(H, BLOCK)](a, prev_c.contiguous(), next_h, next_c, H, BLOCK)
    return next_c


def cell_backward(dh, dc, gates, prev_c, next_c, da):
    """Gradient of `cell_forward_`: fills da (n, 4H), returns dprev_c (n, H)."""
    n, H = prev_c.shape
    dprev_c = prev_c.new_empty(n, H)
    read = (part.contiguous() for part in (dh, dc, gates, prev_c, next_c))
    with torch.cuda.device_of(da):
        _backward[n, triton.cdiv(H, BLOCK)](*read, da, dprev_c, H, BLOCK)
    return dprev_c


if triton is not None:

    @triton.jit
    def _load(pointer, inside):
        return tl.load(pointer, inside).to(tl.float32)

    @triton.jit
    def _tanh(x):
        return 2 * tl.sigmoid(2 * x) - 1

    @triton.jit
    def _forward(a, prev_c, next_h, next_c, H, BLOCK: tl.constexpr):
        row, unit = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        inside, a, at = unit < H, a + row * 4 * H + unit, row * H + unit
        i = tl.sigmoid(_load(a, inside))
        f = tl.sigmoid(_load(a + H, inside))
        o = tl.sigmoid(_load(a + 2 * H, inside))
        g = _tanh(_load(a + 3 * H, inside))
        c = f * _load(prev_c + at, inside) + i * g
        tl.store(a, i, inside)
        tl.store(a + H, f, inside)
        tl.store(a + 2 * H, o, inside)
        tl.store(a + 3 * H, g, inside)
        tl.store(next_c + at, c, inside)
        tl.store(next_h + at, o * _tanh(c), inside)

    @triton.jit
    def _backward(dnext_h, dnext_c, gates, prev_c, next_c, da, dprev_c, H, BLOCK: tl.constexpr):
        row, unit = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        inside, gates, da, at = unit < H, gates + row * 4 * H + unit, da + row * 4 * H + unit, row * H + unit
        i, f = _load(gates, inside), _load(gates + H, inside)
        o, g = _load(gates + 2 * H, inside), _load(gates + 3 * H, inside)
        dh, tanh_c = _load(dnext_h + at, inside), _tanh(_load(next_c + at, inside))
        dc = _load(dnext_c + at, inside) + dh * o * (1 - tanh_c * tanh_c)
        tl.store(da, dc * g * i * (1 - i), inside)
        tl.store(da + H, dc * _load(prev_c + at, inside) * f * (1 - f), inside)
        tl.store(da + 2 * H, dh * tanh_c * o * (1 - o), inside)
        tl.store(da + 3 * H, dc * i * (1 - g * g), inside)
        tl.store(dprev_c + at, dc * f, inside)
