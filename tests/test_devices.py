"""Tensors are made on the device of the inputs: a second device finds those that a GPU would not take.

tests/cli/test_commands.py does the same with whole commands.
"""

import pytest
import torch
from support.captioner import CELLS, VOCABULARY, WORDS, batch, make_model
from support.second_device import Elsewhere, a_second_device

import rnn_lstm_captioning as rlc
from eecs598 import decoding, fast
from eecs598.teacher_forcing import explain_captions
from eecs598.training.objective import Objective


@pytest.fixture
def elsewhere():
    with a_second_device() as device:
        yield device


def test_a_second_device_computes_the_same_and_takes_no_tensor_of_the_first(elsewhere):
    x, y = torch.arange(6.0).view(2, 3).to(elsewhere).requires_grad_(), torch.ones(3)
    assert x.device == elsewhere != y.device
    z = (x * y.to(elsewhere))[:, 1:].square()
    z.sum().backward()
    assert z.tolist() == [[1, 4], [16, 25]] and x.grad.cpu().tolist() == [[0, 2, 4], [0, 8, 10]]
    assert type(torch.zeros(2, device=elsewhere)) is type(torch.tensor([2], device=elsewhere)) is Elsewhere
    assert x[torch.tensor([1])].device == elsewhere and (x + torch.tensor(1.0)).device == elsewhere
    with pytest.raises(RuntimeError, match=r"aten\.mul\.Tensor got tensors on both devices, on the CPU \(3,\)"):
        x * y
    with pytest.raises(RuntimeError, match=r"aten\.index\.Tensor got tensors on both devices"):
        y[torch.tensor([1], device=elsewhere)]


@pytest.mark.parametrize("module", [rlc, fast])
@pytest.mark.parametrize("name, start", [("RNN", (3, 6)), ("LSTM", (3, 6)), ("AttentionLSTM", (3, 6, 2, 3))])
def test_layers(elsewhere, module, name, start):
    x, start = torch.randn(3, 4, 5), torch.randn(start)
    layer = getattr(module, name)(5, 6)
    results = []
    for device in ("cpu", elsewhere):
        layer.to(device).zero_grad()
        h = layer(x.to(device), start.to(device))
        h = h[0] if isinstance(h, tuple) else h
        h.square().sum().backward()
        assert h.device == layer.Wx.grad.device == torch.device(device)
        results.append([h.cpu(), *(parameter.grad.cpu() for parameter in layer.parameters())])
    torch.testing.assert_close(*results)


@CELLS
def test_captioners(elsewhere, cell_type):
    model, (images, captions) = make_model(cell_type).to(elsewhere), batch(3)
    images, captions = images.to(elsewhere), captions.to(elsewhere)
    loss, gradients = rlc.captioning_gradients(model, model.image_encoder(images), captions)
    model(images, captions).backward()
    Objective(model, fast=True)(images, captions).backward()
    assert {tensor.device for tensor in (loss, *gradients.values())} == {elsewhere}
    sampled = model.sample(images, 5)
    assert (sampled[0] if cell_type == "attn" else sampled).device == elsewhere
    for options in ({}, {"beam_size": 3, "length_penalty": 0.5}, {"num_captions": 2, "temperature": 0.8}):
        assert decoding.decode(model, images, max_length=5, **options).words.device == elsewhere
    vocabulary = {"idx_to_token": WORDS, "token_to_idx": VOCABULARY}
    assert len(explain_captions(model, images.cpu(), [WORDS[-2:]] * 3, vocabulary).captions) == 3
