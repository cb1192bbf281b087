"""CaptioningRNN: its loss, its gradient by hand, its captions."""

import math

import pytest
import torch
import torch.nn.functional as F
from support.captioner import CELLS, END, NULL, START, VOCABULARY, WORDS, batch, make_model, reference_loss

import rnn_lstm_captioning as rlc
from eecs598.captioner import CELL_TYPES
from eecs598.grad import rel_error


@CELLS
@pytest.mark.parametrize("ignore_index", [NULL, None, 4])
@pytest.mark.parametrize("n, grid", [(4, (2, 3)), (1, (1, 1)), (3, (3, 5))])
def test_loss_and_gradients_equal_the_definition(cell_type, ignore_index, n, grid):
    model = make_model(cell_type, ignore_index, grid)
    images, captions = batch(n)
    loss, expected = model(images, captions), reference_loss(model, images, captions, ignore_index)
    assert rel_error(loss, expected) < 1e-12
    parameters = list(model.parameters())
    for a, b in zip(torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters)):
        assert rel_error(a, b) < 1e-10


@CELLS
@pytest.mark.parametrize("ignore_index", [NULL, None])
@pytest.mark.parametrize("n, grid", [(4, (2, 3)), (1, (1, 1)), (3, (3, 5))])
def test_the_whole_gradient_by_hand(cell_type, ignore_index, n, grid):
    """Without autograd, every decoder parameter's gradient; and it is autograd's, computed from plain steps."""
    model = make_model(cell_type, ignore_index, grid)
    images, captions = batch(n)
    loss, gradients = rlc.captioning_gradients(model, model.image_encoder(images), captions)
    expected = reference_loss(model, images, captions, ignore_index)
    assert rel_error(loss, expected) < 1e-12
    names, parameters = zip(*model.named_parameters())
    assert set(gradients) == set(names)
    for name, wanted in zip(names, torch.autograd.grad(expected, parameters)):
        assert gradients[name].shape == wanted.shape
        assert rel_error(gradients[name], wanted) < 1e-10, name


def test_padding_has_no_gradient_and_no_effect():
    """More <NULL> columns change nothing."""
    for cell_type in CELL_TYPES:
        model = make_model(cell_type)
        images, captions = batch()
        longer = F.pad(captions, (0, 5), value=NULL)
        torch.testing.assert_close(model(images, longer), model(images, captions), rtol=1e-12, atol=0)
        captions[0, 1:] = NULL  # a caption without a single real step
        assert model(images, captions).isfinite()


@CELLS
def test_the_loss_depends_on_the_picture(cell_type):
    model = make_model(cell_type)
    images, captions = batch()
    assert abs(model(images, captions) - model(images.flip(2) ** 3, captions)) > 1e-4


@CELLS
def test_a_batch_is_the_mean_of_its_captions(cell_type):
    model = make_model(cell_type)
    images, captions = batch(5)
    single = [model(images[i : i + 1], captions[i : i + 1]) for i in range(5)]
    torch.testing.assert_close(model(images, captions), torch.stack(single).mean())


def test_published_parameters_and_no_others():
    model = rlc.CaptioningRNN(VOCABULARY, 400, 6, 5, "attn", image_encoder_pretrained=False)
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters() if not n.startswith("image_encoder.")}
    assert shapes == {
        "feature_projection.weight": (5, 400), "feature_projection.bias": (5,), "word_embedding.W_embed": (9, 6),
        "cell.Wx": (6, 20), "cell.Wh": (5, 20), "cell.Wattn": (5, 20), "cell.b": (20,),
        "output_projection.weight": (9, 5), "output_projection.bias": (9,)}  # fmt: skip
    assert model.image_encoder.out_channels == 400
    captions, weights = model.sample(torch.zeros(2, 3, 64, 96, dtype=torch.uint8), max_length=3)
    assert captions.shape == (2, 3) and weights.shape == (2, 3, 2, 3)


@CELLS
def test_sample_is_the_greedy_loop(cell_type):
    model = make_model(cell_type)
    images = torch.rand(6, 3, 1, 1, dtype=torch.float64).expand(-1, -1, 12, 18)  # each of a colour of its own
    model.feature_projection.weight.data *= 10
    model.output_projection.weight.data *= 5
    for bias in torch.linspace(0, 6, 61):  # until the captions end at different times
        model.output_projection.bias.data[END] = bias
        sampled = model.sample(images, max_length=8)
        captions = sampled[0] if cell_type == "attn" else sampled
        if len({row.tolist().index(END) for row in captions if END in row}) > 1:
            break
    else:
        pytest.fail("all captions end at the same step: this test would see nothing")
    assert captions.shape == (6, 8) and captions.dtype == torch.int64 and not captions.requires_grad
    for n in range(6):  # one picture at a time, word by word
        state, word, expected = model.begin(images[n : n + 1]), torch.tensor([START]), []
        while len(expected) < 8 and END not in expected:
            scores, state, _ = model.step(word, state)
            word = scores.argmax(1)
            expected.append(int(word))
        assert captions[n].tolist() == expected + [NULL] * (8 - len(expected))


def test_attention_weights_of_a_sample():
    model = make_model("attn", grid=(3, 5))
    captions, weights = model.sample(batch(6)[0], max_length=8)
    assert weights.shape == (6, 8, 3, 5) and weights.device.type == "cpu"
    spoken = captions != NULL
    torch.testing.assert_close(weights.sum(dim=(2, 3)), spoken.double())


def test_expected_loss_of_an_untrained_model():
    """With zero weights every word has probability 1 / V: the loss is T log V."""
    model = make_model("lstm", ignore_index=None)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    images, captions = batch()
    assert model(images, captions).item() == pytest.approx(6 * math.log(len(WORDS)))


@CELLS
def test_under_autocast_the_decoder_computes_in_its_own_precision(cell_type):
    model = make_model(cell_type).float()
    images, captions = batch()
    exact = model(images.float(), captions)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(images.float(), captions)
    loss.backward()
    assert loss.dtype == torch.float32 and rel_error(loss.detach(), exact.detach()) < 1e-3
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="cell_type is 'gru'; it must be one of rnn, lstm, attn"):
        make_model("gru")


def test_a_vocabulary_without_start_is_taken_as_in_the_published_notebook():
    model = rlc.CaptioningRNN({"<NULL>": 0, "cat": 2, "dog": 3}, 400, 6, 5, "rnn", False, ignore_index=0)
    assert model(torch.rand(2, 3, 64, 64), torch.arange(8).view(2, 4) % 3).isfinite()
