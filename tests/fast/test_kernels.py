"""The kernels for GPUs against the plain code; without a GPU in Triton's interpreter, where Triton is installed."""

import importlib.util

import pytest
import torch

from eecs598 import fast
from eecs598.fast import kernels, lstm

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")
needs_triton = pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="Triton is not installed here")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # there the kernels are interpreted: see conftest.py
SIZES = [(3, 5), (1, 1), (4, 700)]  # rows and units; 700 are more than a program computes


def make_inputs(n, H, dtype):
    """a (n, 4H) and prev_c, dnext_h, dnext_c (n, H), of which dnext_h is not contiguous."""
    a, prev_c, dh, dc = torch.randn(n, 4 * H), torch.randn(n, H), torch.randn(H, n).t(), torch.randn(n, H)
    return [tensor.to(DEVICE, dtype) for tensor in (a, prev_c, dh, dc)]


def both_ways(inputs):
    """All that the forward and the backward pass make of the inputs, in their dtype."""
    gates, prev_c, dh, dc = (tensor.clone(memory_format=torch.preserve_format) for tensor in inputs)
    next_h, da = torch.full_like(prev_c, torch.nan), torch.full_like(gates, torch.nan)
    next_c, tanh_c = lstm.cell_forward_(gates, prev_c, next_h)
    return [gates, next_c, next_h, da, lstm.cell_backward(dh, dc, gates, prev_c, next_c, tanh_c, da)]


@needs_triton
@pytest.mark.parametrize("n, H", SIZES)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-6), (torch.bfloat16, 4e-2)])
def test_kernels_are_the_plain_code(n, H, dtype, tolerance, monkeypatch):
    inputs = make_inputs(n, H, dtype)
    wanted = both_ways([tensor.cpu().double() for tensor in inputs])
    monkeypatch.setattr(kernels, "fits", lambda tensor: True)
    seen = both_ways(inputs)
    for one, other in zip(seen, wanted):
        torch.testing.assert_close(one.cpu().double(), other, rtol=tolerance, atol=tolerance)


def test_kernels_take_what_is_on_a_gpu_alone():
    assert not kernels.fits(torch.randn(2, 8))
    if torch.cuda.is_available():
        assert not kernels.fits(torch.randn(2, 8, device="cuda", dtype=torch.float64))
        assert kernels.fits(torch.randn(2, 8, device="cuda")) is bool(importlib.util.find_spec("triton"))


def test_the_sequence_functions_use_them_where_they_fit(monkeypatch):
    calls, plain_forward, plain_backward = [], lstm.cell_forward_, lstm.cell_backward

    def without_kernels(function, *tensors):
        with monkeypatch.context() as context:
            context.setattr(kernels, "fits", lambda tensor: False)
            return function(*tensors)

    def forward(*tensors):
        calls.append("forward")
        return without_kernels(plain_forward, *tensors)[0]

    def backward(dh, dc, gates, prev_c, next_c, da):
        calls.append("backward")
        return without_kernels(plain_backward, dh, dc, gates, prev_c, next_c, next_c.tanh(), da)

    monkeypatch.setattr(kernels, "cell_forward_", forward)
    monkeypatch.setattr(kernels, "cell_backward", backward)
    layer, x, h0 = fast.LSTM(3, 4), torch.randn(2, 5, 3), torch.randn(2, 4)
    gradients = []
    for fits, wanted in ((False, []), (True, ["forward"] * 5 + ["backward"] * 5)):
        monkeypatch.setattr(kernels, "fits", lambda tensor, fits=fits: fits)
        gradients.append(torch.autograd.grad(layer(x, h0).sum(), layer.Wx)[0])
        assert calls == wanted
    torch.testing.assert_close(*gradients)


@needs_gpu
@pytest.mark.parametrize("N, T, D, H, grid", [(1, 1, 1, 1, (1, 1)), (5, 7, 3, 4, (2, 3)), (33, 16, 30, 600, (3, 5))])
def test_layers_on_a_gpu_are_those_on_the_cpu(N, T, D, H, grid):
    lengths = torch.arange(1, T + 1).flip(0).repeat_interleave(-(-N // T))[:N]
    for layer, start in ((fast.LSTM(D, H), torch.randn(N, H)), (fast.AttentionLSTM(D, H), torch.randn(N, H, *grid))):
        x, results = torch.randn(N, T, D), []
        for device, dtype in (("cpu", torch.float64), ("cuda", torch.float32)):
            layer = layer.to(device, dtype)
            inputs = [tensor.to(device, dtype).requires_grad_() for tensor in (x, start)]
            h = layer(*inputs, lengths.to(device))
            h.square().sum().backward()
            results.append([h, *(tensor.grad for tensor in inputs), *(p.grad for p in layer.parameters())])
            layer.zero_grad()
        for one, other in zip(*results):
            torch.testing.assert_close(other.cpu().double(), one, rtol=1e-4, atol=1e-4 * one.abs().max().item())


@needs_gpu
def test_a_layer_recorded_as_one_graph_gives_the_same():
    from eecs598 import bench

    layer, x, h0 = fast.LSTM(6, 8).cuda(), torch.randn(4, 5, 6).cuda(), torch.randn(4, 8).cuda()
    ways = bench.ways_to_run(layer, x, h0)
    assert len(ways) == 2
    grads = []
    for way in ways.values():
        inputs = x.clone().requires_grad_(), h0.clone().requires_grad_()
        h = way(*inputs)
        h.square().sum().backward()
        grads.append([h, *(tensor.grad for tensor in inputs), *(p.grad for p in way.parameters())])
    for one, other in zip(*grads):
        torch.testing.assert_close(one, other)
