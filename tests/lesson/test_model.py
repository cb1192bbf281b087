"""CaptioningRNN: its loss, its gradient by hand, its captions, and a student's file in its place."""

import math

import pytest
import torch
import torch.nn.functional as F

import rnn_lstm_captioning as rlc
from eecs598.encoders import set_encoder
from eecs598.grad import rel_error

WORDS = ["<NULL>", "<START>", "<END>", "<UNK>", "a", "red", "ball", "on", "grass"]
VOCABULARY = {word: i for i, word in enumerate(WORDS)}
NULL, START, END = 0, 1, 2
CELLS = pytest.mark.parametrize("cell_type", rlc.CELL_TYPES)


class PoolingEncoder(torch.nn.Module):
    """A tiny encoder: the picture's colours on a coarse grid of any shape."""

    def __init__(self, grid=(2, 3)):
        super().__init__()
        self.grid, self.out_channels = grid, 3

    def forward(self, images):
        return F.adaptive_avg_pool2d(images, self.grid)


@pytest.fixture
def make_model(monkeypatch):
    """Builds a small captioner without the cost of a RegNet."""
    monkeypatch.setattr(rlc, "ImageEncoder", lambda pretrained=True: PoolingEncoder())

    def make(cell_type, ignore_index=NULL, grid=(2, 3), **sizes):
        torch.manual_seed(0)
        sizes = {"input_dim": 3, "wordvec_dim": 5, "hidden_dim": 7} | sizes
        model = rlc.CaptioningRNN(VOCABULARY, cell_type=cell_type, ignore_index=ignore_index, **sizes)
        return set_encoder(model, PoolingEncoder(grid)).double()

    return make


def batch(n=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(n, 3, 12, 18, generator=generator, dtype=torch.float64)
    captions = torch.zeros(n, 7, dtype=torch.int64)
    for row in captions:
        words = int(torch.randint(0, 6, (), generator=generator))
        row[0], row[words + 1] = START, END
        row[1 : words + 1] = torch.randint(3, len(WORDS), (words,), generator=generator)
    return images, captions


def reference_loss(model, images, captions, ignore_index):
    """The loss from its definition: steps in a loop, every step computed, F.cross_entropy."""
    state, scores = model.begin(images), []
    for words in captions[:, :-1].unbind(1):
        step_scores, state, _ = model.step(words, state)
        scores.append(step_scores)
    kept = -100 if ignore_index is None else ignore_index
    total = F.cross_entropy(torch.cat(scores), captions[:, 1:].t().flatten(), ignore_index=kept, reduction="sum")
    return total / len(captions)


@CELLS
@pytest.mark.parametrize("ignore_index", [NULL, None, 4])
@pytest.mark.parametrize("n, grid", [(4, (2, 3)), (1, (1, 1)), (3, (3, 5))])
def test_loss_and_gradients_equal_the_definition(make_model, cell_type, ignore_index, n, grid):
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
def test_the_whole_gradient_by_hand(make_model, cell_type, ignore_index, n, grid):
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


def test_padding_has_no_gradient_and_no_effect(make_model):
    """More <NULL> columns change nothing."""
    for cell_type in rlc.CELL_TYPES:
        model = make_model(cell_type)
        images, captions = batch()
        longer = F.pad(captions, (0, 5), value=NULL)
        torch.testing.assert_close(model(images, longer), model(images, captions), rtol=1e-12, atol=0)
        captions[0, 1:] = NULL  # a caption without a single real step
        assert model(images, captions).isfinite()


@CELLS
def test_the_loss_depends_on_the_picture(make_model, cell_type):
    model = make_model(cell_type)
    images, captions = batch()
    assert abs(model(images, captions) - model(images.flip(2) ** 3, captions)) > 1e-4


@CELLS
def test_a_batch_is_the_mean_of_its_captions(make_model, cell_type):
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
def test_sample_is_the_greedy_loop(make_model, cell_type):
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


def test_attention_weights_of_a_sample(make_model):
    model = make_model("attn", grid=(3, 5))
    captions, weights = model.sample(batch(6)[0], max_length=8)
    assert weights.shape == (6, 8, 3, 5) and weights.device.type == "cpu"
    spoken = captions != NULL
    torch.testing.assert_close(weights.sum(dim=(2, 3)), spoken.double())


@CELLS
def test_sample_stops_when_every_caption_has_ended(make_model, cell_type, monkeypatch):
    model, steps = make_model(cell_type), []
    with torch.no_grad():
        model.output_projection.bias[END] = 1e3  # every caption ends at once
    step = model.step
    monkeypatch.setattr(model, "step", lambda *args: steps.append(1) or step(*args))
    sampled = model.sample(batch()[0], max_length=50)
    captions = sampled[0] if cell_type == "attn" else sampled
    assert len(steps) == 1
    assert (captions[:, 0] == END).all() and (captions[:, 1:] == NULL).all()


def test_sample_leaves_the_mode_and_the_batch_statistics_alone():
    model = rlc.CaptioningRNN(VOCABULARY, 400, 6, 5, image_encoder_pretrained=False).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.sample(torch.rand(2, 3, 32, 32), max_length=2)
    assert model.training and model.image_encoder.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_expected_loss_of_an_untrained_model(make_model):
    """With zero weights every word has probability 1 / V: the loss is T log V."""
    model = make_model("lstm", ignore_index=None)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    images, captions = batch()
    assert float(model(images, captions)) == pytest.approx(6 * math.log(len(WORDS)))


@CELLS
def test_training_under_autocast(make_model, cell_type):
    model = make_model(cell_type).float()
    images, captions = batch()
    exact = model(images.float(), captions)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(images.float(), captions)
    loss.backward()
    assert loss.dtype == torch.float32 and rel_error(loss.detach(), exact.detach()) < 0.02
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())


def test_bad_input_is_named(make_model):
    model = make_model("lstm")
    images, captions = batch()
    with pytest.raises(ValueError, match="ids from 0 to 9; the vocabulary has ids 0 to 8"):
        model(images, captions.where(captions != END, 9))
    with pytest.raises(TypeError, match=r"torch.float32; they must be torch.int64"):
        model(images, captions.float())
    with pytest.raises(ValueError, match=r"captions are \(3, 7\); for 4 pictures"):
        model(images, captions[:3])
    with pytest.raises(ValueError, match="max_length is 0"):
        model.sample(images, max_length=0)
    with pytest.raises(ValueError, match="cell_type is 'gru'; it must be one of rnn, lstm, attn"):
        make_model("gru")
    with pytest.raises(ValueError, match=r"lacks <START> <END>"):
        rlc.CaptioningRNN({"<NULL>": 0, "a": 1})
    with pytest.raises(ValueError, match="input_dim is 400"):
        make_model("rnn", input_dim=400)(images, captions)


# --- options that are off as published ----------------------------------------------------------------------

OFF = {"dropout": 0.0, "label_smoothing": 0.0, "tie_embeddings": False, "doubly_stochastic": 0.0,
       "attention_entropy": 0.0, "scheduled_sampling": 0.0}  # fmt: skip


def losses_of(model, images, captions):
    """The model's loss of each caption by itself."""
    return torch.stack([model(images[i : i + 1], captions[i : i + 1]) for i in range(len(captions))])


@CELLS
def test_without_options_nothing_is_drawn_and_training_changes_nothing(make_model, cell_type):
    model, (images, captions) = make_model(cell_type), batch()
    assert model.options == OFF
    before = torch.get_rng_state()
    loss = model.train()(images, captions)
    assert torch.equal(torch.get_rng_state(), before) and loss.item() == model.eval()(images, captions).item()
    assert loss.item() == pytest.approx(reference_loss(model, images, captions, NULL).item(), rel=1e-12)


@CELLS
def test_several_captions_of_a_picture_are_as_many_pairs(make_model, cell_type):
    model, (images, captions) = make_model(cell_type), batch(12)
    together = model(images[:4], captions.view(4, 3, -1))
    gradients = torch.autograd.grad(together, list(model.parameters()))
    pairs = model(images[:4].repeat_interleave(3, dim=0), captions)
    assert together.item() == pytest.approx(pairs.item(), rel=1e-12)
    for found, wanted in zip(gradients, torch.autograd.grad(pairs, list(model.parameters()))):
        assert rel_error(found, wanted) < 1e-10


@CELLS
def test_weights_say_how_much_a_caption_counts(make_model, cell_type):
    options = {"label_smoothing": 0.3, "doubly_stochastic": 2.0, "attention_entropy": 2.0, "scheduled_sampling": 0.5}
    model, (images, captions) = make_model(cell_type, **options), batch(6)
    captions[captions == VOCABULARY["<UNK>"]] = 4
    weights = torch.tensor([1.0, -2.0, 0.5, 0.0, 3.0, -1.0], dtype=torch.float64)
    with torch.no_grad():  # what the loss is to rule out the model must not say anyway
        model.output_projection.bias[[NULL, START, VOCABULARY["<UNK>"]]] = -math.inf
    wanted = (losses_of(model.eval(), images, captions) * weights).mean()
    with torch.no_grad():
        model.output_projection.bias[[NULL, START, VOCABULARY["<UNK>"]]] = 5.0
    assert model.train()(images, captions, weights=weights).item() == pytest.approx(wanted.item(), rel=1e-12)
    shaped = model(images[:2], captions.view(2, 3, -1), weights=weights.view(2, 3))
    pairs = model(images[:2].repeat_interleave(3, dim=0), captions, weights=weights)
    assert shaped.item() == pytest.approx(pairs.item(), rel=1e-12)


@CELLS
def test_dropout_of_features_words_and_states_in_training_alone(make_model, cell_type):
    model, (images, captions) = make_model(cell_type, dropout=0.5), batch()
    plain = make_model(cell_type)
    dropped = []
    model.drop.register_forward_hook(lambda module, inputs, output: dropped.append((inputs[0], output)))
    assert model.eval()(images, captions).item() == plain(images, captions).item()
    dropped.clear()
    model.train()(images, captions)
    sizes = [tuple(before.shape) for before, _ in dropped]
    assert sizes == [(4, 2, 3, 7) if cell_type == "attn" else (4, 7), (4, 6, 5), (4, 6, 7)]
    for before, after in dropped:
        kept = after != 0
        assert torch.allclose(after[kept], 2 * before[kept]) and 0.2 < kept.double().mean() < 0.8
    dropped.clear()
    sampled = model.sample(images)
    assert torch.equal(*(each[0] if cell_type == "attn" else each for each in (sampled, plain.sample(images))))


@CELLS
def test_label_smoothing_spreads_the_target_in_training_alone(make_model, cell_type):
    model, (images, captions) = make_model(cell_type, label_smoothing=0.2), batch()
    state, total = model.begin(images), 0
    for words, targets in zip(captions[:, :-1].unbind(1), captions[:, 1:].unbind(1)):
        scores, state, _ = model.step(words, state)
        wanted = 0.8 * F.one_hot(targets, len(WORDS)).double() + 0.2 / len(WORDS)
        total = total - ((wanted * scores.log_softmax(1)).sum(1) * (targets != NULL)).sum()
    assert model.train()(images, captions).item() == pytest.approx(total.item() / 4, rel=1e-12)
    assert model.eval()(images, captions).item() == make_model(cell_type)(images, captions).item()


@CELLS
def test_tied_embeddings_are_one_weight_that_learns_from_both_ends(make_model, cell_type):
    model, (images, captions) = make_model(cell_type, tie_embeddings=True, wordvec_dim=7), batch()
    assert model.output_projection.weight is model.word_embedding.W_embed
    model(images, captions).backward()
    loose = make_model(cell_type, wordvec_dim=7)
    loose.load_state_dict(model.state_dict())
    loose(images, captions).backward()
    both = loose.word_embedding.W_embed.grad + loose.output_projection.weight.grad
    assert rel_error(model.word_embedding.W_embed.grad, both) < 1e-12


def unevenness(maps, runs):
    """Xu et al.'s equation 14 of weights (N, T, h, w), from its definition."""
    return ((1 - (maps * runs[:, :, None, None]).sum(1)) ** 2).sum((1, 2)).mean()


def entropy(maps, runs):
    return (-torch.special.xlogy(maps, maps).sum((2, 3)) * runs).sum(1).mean()


@pytest.mark.parametrize("option, definition", [("doubly_stochastic", unevenness), ("attention_entropy", entropy)])
def test_options_on_where_to_look_add_what_they_are_defined_as(make_model, option, definition):
    model, (images, captions) = make_model("attn", **{option: 0.3}), batch()
    state, maps = model.begin(images), []
    for words in captions[:, :-1].unbind(1):
        _, state, weights = model.step(words, state)
        maps.append(weights)
    runs = torch.stack([(captions[:, later:] != NULL).any(1) for later in range(1, captions.shape[1])], 1)
    assert not runs.all()  # some captions end early
    penalty = 0.3 * definition(torch.stack(maps, 1), runs)
    loss = model.train()(images, captions)
    assert loss.item() == pytest.approx((reference_loss(model, images, captions, NULL) + penalty).item(), rel=1e-12)
    wanted = torch.autograd.grad(reference_loss(model, images, captions, NULL) + penalty, list(model.parameters()))
    for found, gradient in zip(torch.autograd.grad(loss, list(model.parameters())), wanted):
        assert rel_error(found, gradient) < 1e-9
    assert model.eval()(images, captions).item() == make_model("attn")(images, captions).item()


@CELLS
def test_scheduled_sampling_puts_the_models_words_before(make_model, cell_type):
    model, (images, captions) = make_model(cell_type, scheduled_sampling=0.5), batch(64)
    with torch.no_grad():
        model.output_projection.bias[8] = 100.0  # it would always say "grass"
    before = []
    model.word_embedding.register_forward_hook(lambda module, inputs, output: before.append(inputs[0]))
    model.train()(images, captions)
    given, mixed = before
    assert (mixed[:, 0] == START).all()
    replaced = mixed[:, 1:] != given[:, 1:]
    assert (mixed[:, 1:][replaced] == 8).all() and 0.35 < replaced.double().mean() < 0.65
    before.clear()
    model.eval()(images, captions)
    assert len(before) == 1


@pytest.mark.parametrize("options, message", [
    ({"dropout": 1.0}, "dropout is 1.0; it must be from 0 up to, but not, 1"),
    ({"label_smoothing": -0.1}, "label_smoothing is -0.1"), ({"scheduled_sampling": 1}, "scheduled_sampling is 1"),
    ({"doubly_stochastic": -1}, "doubly_stochastic is -1; it must be finite, and not negative"),
    ({"attention_entropy": math.inf}, "attention_entropy is inf; it must be finite, and not negative"),
    ({"tie_embeddings": True}, "tie_embeddings takes .* wordvec_dim is 5 and hidden_dim 7"),
])  # fmt: skip
def test_options_out_of_range_are_named(make_model, options, message):
    with pytest.raises(ValueError, match=message):
        make_model("attn", **options)
