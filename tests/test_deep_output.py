"""The captioner with a deep output layer: by its definition, step by step, fast, saved, and where it is refused."""

from unittest import mock

import pytest
import torch
from support.captioner import NULL, VOCABULARY, PoolingEncoder, batch, reference_loss
from support.encoder import KnownEncoder

import rnn_lstm_captioning as rlc
from eecs598 import captioner, coco, decoding, encoders
from eecs598.by_picture import ByPicture
from eecs598.cli.command import main
from eecs598.deep_output import DeepOutput, with_deep_output
from eecs598.grad import rel_error
from eecs598.training import selfcritical, solver
from eecs598.training.objective import Objective, ObjectiveError
from eecs598.training.options import PRECISIONS, Options

SHAPES = pytest.mark.parametrize("n, grid, heads, hidden", [
    (4, (2, 3), 2, 6), (1, (1, 1), 1, 1), (3, (3, 5), 3, 9), (2, (1, 4), 8, 8), (5, (2, 2), 1, len(VOCABULARY)),
])  # fmt: skip


def make_model(grid=(2, 3), heads=2, hidden=6, ignore_index=NULL, cell_type="attn"):
    """A small captioner in float64, without the cost of a RegNet."""
    torch.manual_seed(0)
    with mock.patch.object(rlc, "ImageEncoder", lambda pretrained=True: PoolingEncoder(grid)):
        model = with_deep_output(rlc.CaptioningRNN)(
            VOCABULARY, input_dim=3, wordvec_dim=5, hidden_dim=hidden, cell_type=cell_type, output_heads=heads,
            ignore_index=ignore_index,
        )  # fmt: skip
    return model.double()


@SHAPES
def test_a_view_is_the_mean_of_the_values_by_the_softmax_of_each_head(n, grid, heads, hidden):
    torch.manual_seed(0)
    layer, T = DeepOutput(5, hidden, heads).double(), 3
    A, h = torch.randn(n, hidden, *grid, dtype=torch.float64), torch.randn(n, T, hidden, dtype=torch.float64)
    found = layer.look(h.flatten(0, 1), ByPicture(torch.arange(n * T), n, T), *layer.project(A)).view_as(h)
    size = hidden // heads
    for k, picture in enumerate(A.flatten(2)):
        keys, values = layer.keys_and_values(picture.t()).chunk(2, dim=1)  # (L, H) each
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            scores = layer.query(h[k])[:, part] @ keys[:, part].t() / size**0.5
            assert rel_error(found[k, :, part].detach(), (scores.softmax(1) @ values[:, part]).detach()) < 1e-10


@SHAPES
@pytest.mark.parametrize("ignore_index", [NULL, None])
def test_a_whole_caption_is_its_steps(n, grid, heads, hidden, ignore_index):
    model, (images, captions) = make_model(grid, heads, hidden, ignore_index), batch(n)
    found, wanted = model(images, captions), reference_loss(model, images, captions, ignore_index)
    assert rel_error(found.detach(), wanted.detach()) < 1e-10


@SHAPES
@pytest.mark.parametrize("together", [1, 3])
def test_the_fast_loss_is_the_models_own(n, grid, heads, hidden, together):
    model, (images, captions) = make_model(grid, heads, hidden), batch(n * together)
    images, captions = images[:n], captions.view(n, together, -1) if together > 1 else captions
    loss = Objective(model)(images, captions)
    plain = model(images.repeat_interleave(together, 0), captions.flatten(0, -2))
    assert rel_error(loss.detach(), plain.detach()) < 1e-12
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = zip(*(torch.autograd.grad(each, parameters) for each in (loss, plain)))
    assert all(rel_error(a, b) < 1e-9 for a, b in gradients)


def test_training_compares_the_two_and_refuses_another_forward(monkeypatch):
    model = make_model()
    fast = Objective(model).train()
    monkeypatch.setattr(type(model), "forward", rlc.CaptioningRNN.forward)  # the shallow one
    with pytest.raises(ObjectiveError, match="differs from the fast one"):
        fast(*batch())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_all_of_it_learns(precision):
    """Also from sampled captions, where pictures come several times, and with dropout."""
    model, (images, captions) = make_model().float(), batch()
    images = images.float()
    with solver.autocast("cpu", precision):
        assert_all_learns(model, images, captions)


def assert_all_learns(model, images, captions):
    Objective(model, Options(dropout=0.3, label_smoothing=0.1)).train()(images, captions).backward()
    assert all((p.grad != 0).any() for p in model.parameters())
    model.zero_grad()
    vocab = {"token_to_idx": VOCABULARY}
    texts = [[["a", "red", "ball"]], [["on", "grass"]], [["a", "ball"]], [["red"]]]
    loss = selfcritical.SelfCritical(Objective(model), texts, vocab, samples=5, bleu=1.0)
    loss.train()(images, torch.arange(4)).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters()) and (model.deep_output.query.weight.grad != 0).any()


def test_scheduled_sampling_samples_from_the_deep_output():
    """By the states alone, which are negative here, the model would say word 7, by the deep output word 8."""
    model, (images, captions), before = make_model(), batch(64), []
    with torch.no_grad():
        deep = model.deep_output
        for part in (deep.state_projection, deep.word_projection, deep.view_projection):
            part.weight.zero_()
        deep.state_projection.bias.fill_(10.0)
        model.cell.b.copy_(torch.tensor([50.0, 0.0, 50.0, -50.0]).repeat_interleave(6))  # i, f, o, g
        model.output_projection.weight.zero_()
        model.output_projection.weight[7], model.output_projection.weight[8] = -100.0, 100.0
    loss_of = Objective(model, Options(scheduled_sampling=0.5)).train()
    loss_of(images, captions)  # compared
    model.word_embedding.register_forward_hook(lambda module, inputs, output: before.append(inputs[0]))
    loss_of(images, captions)
    given, mixed = before
    replaced = mixed != given
    assert (mixed[replaced] == 8).all() and 0.3 < replaced[given != NULL].double().mean() < 0.7


def test_it_is_decoded_as_others_are():
    model, (images, _) = make_model(), batch(3)
    captions, weights = model.eval().sample(images, 5)
    assert captions.shape == (3, 5) and weights.shape == (3, 5, 2, 3)
    same = torch.stack([images, images], 1)  # nothing changes where the mirror image is the picture
    with mock.patch.object(model.image_encoder, "forward", lambda x: x.mean((2, 3), keepdim=True)):
        plain = decoding.beam_search(model, images, 5)
        mirrored = decoding.beam_search(decoding.Mirrored(model), same, 5)
    assert torch.equal(plain.words, mirrored.words)
    torch.testing.assert_close(plain.log_probs, mirrored.log_probs)


def test_the_command_trains_saves_and_captions_with_it(tmp_path, tiny_data, monkeypatch, capsys):
    monkeypatch.setitem(encoders.ENCODERS, "known", KnownEncoder)
    monkeypatch.setattr(encoders, "encoder_for", lambda data, name: KnownEncoder())
    coco.save_data(tiny_data, tmp_path / "data.pt")
    command = ["train", "--data", tmp_path / "data.pt", "--out", tmp_path / "out", "--epochs", 60, "--hidden", 16,
               "--wordvec", 8, "--learning-rate", 0.02, "--lr-decay", 1, "--output-heads", 4]  # fmt: skip
    status = main([*map(str, command), "--cell", "attn"], lambda: rlc.CaptioningRNN)
    assert status == 0, capsys.readouterr().err
    model, idx_to_token, _ = captioner.load_captioner(tmp_path / "out/attn.pt", rlc.CaptioningRNN)
    assert model.deep_output.heads == 4
    captions, _ = captioner.caption_pictures(model, tiny_data["val_images"], idx_to_token)
    assert captions == [texts[0] for texts in tiny_data["val_references"]]
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main([*map(str, command), "--cell", "attn", "--output-heads", "5"], lambda: rlc.CaptioningRNN)
    assert "--output-heads 5 does not divide --hidden 16" in capsys.readouterr().err
    for cells in ([], ["--cell", "lstm"], ["--cell", "attn", "rnn"]):
        with pytest.raises(SystemExit):
            main([*map(str, command), *cells], lambda: rlc.CaptioningRNN)
        error = capsys.readouterr().err
        assert error.startswith("error: --output-heads look at a grid, which only attn has: add --cell attn, or")


def test_a_captioner_without_the_lessons_parts_is_refused():
    class Other(torch.nn.Module):
        def __init__(self, **sizes):
            super().__init__()
            self.word_embedding = torch.nn.Identity()

    with pytest.raises(ValueError, match="need a captioner with cell, output_projection, encode, begin, step, as this"):
        with_deep_output(Other)(wordvec_dim=5, hidden_dim=6, cell_type="attn", output_heads=2)


@pytest.mark.parametrize("heads", [-2, 0, 4])
def test_the_number_of_heads_is_checked(heads):
    with pytest.raises(ValueError, match=f"output_heads is {heads}; it must be positive and divide hidden_dim, 6"):
        DeepOutput(5, 6, heads)


def test_other_cells_have_no_grid_to_look_at():
    with pytest.raises(ValueError, match="cell_type is 'lstm'; output heads need attn"):
        make_model(cell_type="lstm")
