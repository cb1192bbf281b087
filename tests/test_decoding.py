"""Beam search against all captions there are, drawing against the definitions, and what the commands make of them."""

import contextlib
import itertools
import math
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import rnn_lstm_captioning as rlc
from eecs598 import decoding
from eecs598.deep_output import with_deep_output
from eecs598.encoders import set_encoder
from eecs598.features import Features

NULL, END, START, UNK = 3, 0, 1, 4  # ids are looked up, never assumed
WORDS = ["<END>", "<START>", "a", "<NULL>", "<UNK>", "red", "ball"]
SPOKEN = [2, 5, 6]
CELLS = pytest.mark.parametrize("cell_type", ["rnn", "lstm", "attn"])
AND_DEEP = pytest.mark.parametrize("cell_type", ["rnn", "lstm", "attn", "deep"])
GRIDS = ("attn", "deep")  # those that attend to a grid; the captions of a picture share that of deep


@pytest.fixture
def make_model(monkeypatch):
    """Builds a captioner of grids of 3 numbers in float64, whose captions differ from grid to grid."""
    encoder = Features(torch.float64, 3)
    monkeypatch.setattr(rlc, "ImageEncoder", lambda pretrained=True: encoder)

    def make(cell_type, seed=0, words=WORDS):
        torch.manual_seed(seed)
        kind, options = rlc.CaptioningRNN, {"cell_type": cell_type}
        if cell_type == "deep":
            kind, options = with_deep_output(rlc.CaptioningRNN), {"cell_type": "attn", "output_heads": 2}
        ids = {word: i for i, word in enumerate(words)}
        model = kind(ids, 3, wordvec_dim=5, hidden_dim=8, **options).double()
        for layer in (model.feature_projection, model.output_projection):
            layer.weight.data *= 6
        return set_encoder(model, encoder)

    return make


def pictures(n=5, seed=0):
    return torch.randn(n, 3, 2, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@torch.no_grad()
def word_log_probs(model, image, words):
    """The log-probability of each of the words, one after the other, and the attention weights before each."""
    state, before, log_probs, maps = model.begin(image[None]), model.start, [], []
    for word in words:
        scores, state, weights = model.step(torch.tensor([before]), state)
        log_probs.append(float(torch.log_softmax(scores[0], 0)[word]))
        maps.append(weights)
        before = word
    return log_probs, maps


def all_captions(max_length, repeats=True):
    """Every caption that may be said: words and <END>, or max_length words without."""
    for length in range(max_length + 1):
        for words in itertools.product(SPOKEN, repeat=length):
            if repeats or len(set(words)) == len(words):
                yield [*words, END] if length < max_length else list(words)


def try_all(model, image, max_length, repeats=True):
    """(words, log-probability) of every caption."""
    return [(words, sum(word_log_probs(model, image, words)[0])) for words in all_captions(max_length, repeats)]


def best_first(tried, length_penalty):
    """What `try_all` returns, ended captions first."""
    return sorted(tried, key=lambda one: (one[0][-1:] != [END], -one[1] / len(one[0]) ** length_penalty, one[0]))


def spoken(row):
    """A caption's words without what fills the rest."""
    return [word for word in row.tolist() if word != NULL]


# --- beam search ------------------------------------------------------------------------------------------


@CELLS
@pytest.mark.parametrize("max_length", [1, 4])
def test_a_full_beam_finds_the_true_best(make_model, cell_type, max_length):
    """All of them, in their order, with their probabilities; and then no more."""
    images, every = pictures(2), len(list(all_captions(max_length)))
    for seed in range(3):
        model = make_model(cell_type, seed)
        tried = [try_all(model, image, max_length) for image in images]
        for length_penalty in (0, 0.7, 1):
            found = decoding.beam_search(model, images, max_length, every + 3, length_penalty)
            for n in range(len(images)):
                wanted = best_first(tried[n], length_penalty)
                assert [spoken(row) for row in found.words[n]] == [words for words, _ in wanted] + [[]] * 3
                expected = [log_prob for _, log_prob in wanted] + [-math.inf] * 3
                assert found.log_probs[n].tolist() == pytest.approx(expected, rel=1e-10)


@CELLS
def test_length_normalization_changes_what_is_best(make_model, cell_type):
    """Or the test above would see nothing of it."""
    model, best = make_model(cell_type), set()
    model.output_projection.bias.data[END] += 2
    for length_penalty in (0, 1):
        found = decoding.beam_search(model, pictures(20), 4, 100, length_penalty)
        best.add(tuple(len(spoken(row)) for row in found.words[:, 0]))
    assert len(best) == 2


@AND_DEEP
def test_probabilities_and_weights_belong_to_the_words(make_model, cell_type):
    """Of every caption in the beam, whatever rows it came through."""
    model, images = make_model(cell_type), pictures(12)
    model.output_projection.bias.data[END] = -4
    found = decoding.beam_search(model, images, 6, 3)
    crossed = False
    for n, k in itertools.product(range(12), range(3)):
        words = spoken(found.words[n, k])
        log_probs, maps = word_log_probs(model, images[n], words)
        assert found.word_log_probs[n, k].tolist() == pytest.approx(log_probs + [0] * (6 - len(words)), rel=1e-10)
        assert float(found.log_probs[n, k]) == pytest.approx(sum(log_probs), rel=1e-10)
        if cell_type in GRIDS:
            torch.testing.assert_close(found.weights[n, k, : len(words)], torch.cat(maps))
            assert not found.weights[n, k, len(words) :].any()
        crossed |= k > 0 and words[0] == found.words[n, 0, 0]
    assert crossed and (found.weights is None) == (cell_type not in GRIDS)
    assert found.weights is None or (found.weights.device.type == "cpu" and found.weights.shape == (12, 3, 6, 2, 3))


@CELLS
@pytest.mark.parametrize("beam_size", [2, 100])
@pytest.mark.parametrize("beam_temperature", [0.5, 2.0])
def test_a_beam_with_a_temperature_is_that_of_the_divided_logits(make_model, cell_type, beam_size, beam_temperature):
    """Its captions, in its order; the probabilities are those of the model as it is."""
    model, divided, images = make_model(cell_type), make_model(cell_type), pictures(60)
    for each in (model, divided):
        each.output_projection.bias.data[[NULL, START, UNK]] = -1e4  # banned words, which have no part in the softmax
    divided.output_projection.weight.data /= beam_temperature
    divided.output_projection.bias.data /= beam_temperature
    found = decoding.beam_search(model, images, 4, beam_size, 0.7, beam_temperature=beam_temperature)
    assert torch.equal(found.words, decoding.beam_search(divided, images, 4, beam_size, 0.7).words)
    assert not torch.equal(found.words, decoding.beam_search(model, images, 4, beam_size, 0.7).words)
    for n, k in itertools.product(range(6), range(2)):
        log_probs, _ = word_log_probs(model, images[n], words := spoken(found.words[n, k]))
        assert found.word_log_probs[n, k, : len(words)].tolist() == pytest.approx(log_probs)


@AND_DEEP
@pytest.mark.parametrize("beam_size", [1, 2, 3, 7])
def test_a_batch_is_searched_like_single_pictures(make_model, cell_type, beam_size):
    model, images = make_model(cell_type), pictures(9)
    together = decoding.beam_search(model, images, 8, beam_size, 0.5)
    lengths = (together.words != NULL).sum(2)
    assert lengths.unique().numel() > 1  # or dropping out would not be seen
    for n in range(9):
        single = decoding.beam_search(model, images[n : n + 1], 8, beam_size, 0.5)
        for part, of_all in zip(single, together):
            if part is not None:
                torch.testing.assert_close(part[0], of_all[n], rtol=1e-10, atol=1e-12)


@CELLS
def test_a_beam_of_one_is_greedy(make_model, cell_type):
    """Where greedy decoding does not want to say what must not be said."""
    model, images = make_model(cell_type), pictures(9)
    model.output_projection.bias.data[[NULL, START, UNK]] -= 100
    greedy, found = model.sample(images, 8), decoding.beam_search(model, images, 8, 1)
    if cell_type == "attn":
        greedy, weights = greedy
        torch.testing.assert_close(found.weights[:, 0], weights)
    assert torch.equal(found.words[:, 0], greedy)
    assert (greedy == END).any() and len({len(spoken(row)) for row in greedy}) > 1


@CELLS
def test_a_wider_beam_finds_more_probable_captions(make_model, cell_type):
    """Not for each picture, but by far for most of them."""
    model, images = make_model(cell_type), pictures(40)
    narrow, wide = (decoding.beam_search(model, images, 6, size).log_probs[:, 0] for size in (1, 8))
    assert (wide >= narrow - 1e-9).float().mean() > 0.9 and (wide > narrow + 1e-3).any()
    ordered = decoding.beam_search(model, images, 6, 8).log_probs
    ended = (decoding.beam_search(model, images, 6, 8).words == END).any(2)
    both = ended[:, 1:] & ended[:, :-1]
    assert both.any() and (ordered[:, :-1] >= ordered[:, 1:])[both].all()


@CELLS
@pytest.mark.parametrize("options", [{"beam_size": 3}, {"temperature": 3.0}, {"top_k": 3}, {"top_p": 0.9}])
def test_words_that_must_not_be_said(make_model, cell_type, options):
    """Although the model would: greedily it says hardly anything else."""
    model, images = make_model(cell_type), pictures()
    model.output_projection.bias.data += torch.tensor([0, 12, 0, 6, 12, 0, 0])  # of <START>, <NULL> and <UNK>
    greedy = model.sample(images, 8)
    greedy = greedy[0] if cell_type == "attn" else greedy
    assert torch.isin(greedy, torch.tensor([START, UNK])).float().mean() > 0.2
    words = decoding.decode(model, images, 8, **options).words
    for row in words.flatten(0, 1).tolist():
        said = row[: row.index(END) + 1] if END in row else row
        assert not {NULL, START, UNK} & set(said) and set(row[len(said) :]) <= {NULL}


@CELLS
@pytest.mark.parametrize("least", [-1e9, -math.inf])
@pytest.mark.parametrize("options", [{"beam_size": 3}, {"beam_size": 3, "length_penalty": 1}, {"temperature": 1.0}])
def test_captions_that_never_end(make_model, cell_type, least, options):
    model = make_model(cell_type)
    model.output_projection.bias.data[END] = least
    said = decoding.decode(model, pictures(), 7, **options)
    assert torch.isin(said.words, torch.tensor(SPOKEN)).all() and said.log_probs.isfinite().all()


def test_unfinished_captions_only_fill_what_is_left(make_model):
    model = make_model("lstm")
    model.output_projection.bias.data[END] = -8
    found = decoding.beam_search(model, pictures(30), 5, 100)
    ended = (found.words == END).any(2).long()
    assert 0 < ended.sum() < ended.numel() and (ended.diff(dim=1) <= 0).all()


def test_a_vocabulary_of_nothing_but_the_end(make_model):
    model = make_model("rnn", words=["<NULL>", "<START>", "<END>"])
    found = decoding.beam_search(model, pictures(), 4, 2)
    assert found.words[:, 0].tolist() == [[2, 0, 0, 0]] * 5 and not found.words[:, 1].any()
    assert (found.log_probs[:, 1] == -math.inf).all() and not found.word_log_probs[:, 1].any()


@contextlib.contextmanager
def counted(model):
    """A list that gets, for each step inside, its number of rows."""
    rows, step = [], model.step
    model.step = lambda words, state: rows.append(len(words)) or step(words, state)
    yield rows
    del model.step


@CELLS
@pytest.mark.parametrize("options, rows", [
    ({"beam_size": 1}, [5]), ({"temperature": 1.0, "num_captions": 2}, [5]), ({"beam_size": 3}, [5, 15, 15])
])  # fmt: skip
def test_it_stops_when_all_have_ended(make_model, cell_type, options, rows):
    """At once, but for a wider beam, which also looks for the best captions that are longer."""
    model = make_model(cell_type)
    model.output_projection.bias.data[END] = 1e3
    with counted(model) as seen:
        words = decoding.decode(model, pictures(), 50, **options).words
    assert seen == rows[: len(seen)] and len(seen) <= len(rows)
    assert (words[:, 0, 0] == END).all() and words.shape[2] == 50


@AND_DEEP
def test_pictures_that_are_done_drop_out(make_model, cell_type):
    model, images = make_model(cell_type), pictures(9)
    with counted(model) as together:
        decoding.beam_search(model, images, 8, 3)
    single = torch.zeros(8, dtype=torch.int64)
    for image in images:
        with counted(model) as seen:
            decoding.beam_search(model, image[None], 8, 3)
        single[: len(seen)] += torch.tensor(seen)
    assert together == [rows for rows in single.tolist() if rows] and together[-1] < 3 * 9


@AND_DEEP
def test_captions_that_begin_alike_are_computed_once(make_model, cell_type):
    model, images, generator = make_model(cell_type), pictures(3), torch.Generator().manual_seed(0)
    with counted(model) as seen:
        drawn = decoding.sample_captions(model, images, 5, 20, generator=generator).words.tolist()
    for t, rows in enumerate(seen):
        begun = {(n, *words[:t]) for n, captions in enumerate(drawn) for words in captions if END not in words[:t]}
        assert rows == len(begun)
    assert seen[0] == 3 < seen[1] <= 3 * len(SPOKEN) + 3 * 1 and len(seen) == 5


# --- repeats ----------------------------------------------------------------------------------------------


def repeated(words, n):
    runs = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return len(runs) > len(set(runs))


@CELLS
@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("options", [{}, {"beam_size": 3}, {"temperature": 0.7}])
def test_no_run_of_words_is_repeated(make_model, cell_type, n, options):
    model, images = make_model(cell_type), pictures(8)
    model.output_projection.bias.data[END] = -4
    free = decoding.decode(model, images, 12, **options).words.flatten(0, 1)
    assert any(repeated(spoken(row), n) for row in free)
    generator = {"generator": torch.Generator().manual_seed(0)} if "temperature" in options else {}
    kept = decoding.decode(model, images, 12, **options, no_repeat_ngram=n, **generator).words.flatten(0, 1)
    assert not any(repeated(spoken(row), n) for row in kept)
    assert max(len(spoken(row)) for row in kept) > n  # what may be said still is


def test_the_best_caption_without_a_repeat(make_model):
    for seed in range(3):
        model = make_model("attn", seed)
        found = decoding.beam_search(model, pictures(1), 4, 30, no_repeat_ngram=1)
        wanted = [words for words, _ in best_first(try_all(model, pictures(1)[0], 4, repeats=False), 0)]
        assert [spoken(row) for row in found.words[0]][: len(wanted)] == wanted


# --- drawing ----------------------------------------------------------------------------------------------


def kept_by_definition(log_probs, temperature, top_k, top_p):
    """The distribution over words, as a list: temperature, then the k likeliest, then the fewest with mass p."""
    weights = [math.exp(value / temperature) for value in log_probs]
    order = sorted(range(len(weights)), key=lambda word: -weights[word])[:top_k]
    total = sum(weights[word] for word in order)
    if top_p is not None:
        mass = list(itertools.accumulate(weights[word] / total for word in order))
        order = order[: next((i for i, m in enumerate(mass) if m >= top_p - 1e-12), len(order)) + 1]
        total = sum(weights[word] for word in order)
    return [weights[word] / total if word in order else 0.0 for word in range(len(weights))]


@settings(deadline=None, max_examples=40)
@given(
    probs=st.lists(st.floats(0.01, 1), min_size=1, max_size=8, unique_by=lambda p: round(p, 2)),
    temperature=st.sampled_from([0.3, 1, 2.5]), top_k=st.none() | st.integers(1, 9),
    top_p=st.none() | st.floats(0.05, 1), seed=st.integers(0, 99),
)  # fmt: skip
def test_words_are_drawn_from_the_distribution_of_the_definition(probs, temperature, top_k, top_p, seed):
    log_probs = torch.tensor(probs, dtype=torch.float64).log().log_softmax(0)
    expected = torch.tensor(kept_by_definition(log_probs.tolist(), temperature, top_k, top_p), dtype=torch.float64)
    draws, generator = 4000, torch.Generator().manual_seed(seed)
    drawn = decoding.sample_words(log_probs.expand(draws, -1), temperature, top_k, top_p, generator)
    shares = drawn.bincount(minlength=len(probs)) / draws
    assert not shares[expected == 0].any()
    assert (shares - expected).abs().max() < 5 * (expected * (1 - expected) / draws).sqrt().max() + 1e-9


def test_a_word_that_must_not_be_said_is_never_drawn_and_a_cold_draw_is_the_likeliest():
    log_probs = torch.tensor([[-math.inf, -1.0, -2.0, -math.inf]]).expand(1000, -1)
    for temperature, words in ((1e-40, {1}), (1e30, {1, 2})):
        for top_k, top_p in ((None, None), (4, None), (None, 1.0), (4, 0.9999)):
            assert set(decoding.sample_words(log_probs, temperature, top_k, top_p).tolist()) == words


@AND_DEEP
def test_drawn_captions_have_their_own_probabilities(make_model, cell_type):
    """And the shares that those probabilities say."""
    model, images, max_length = make_model(cell_type), pictures(2), 2
    for word in (NULL, START, UNK):
        model.output_projection.bias.data[word] = -1e3
    drawn = decoding.sample_captions(model, images, max_length, 4000, generator=torch.Generator().manual_seed(0))
    for n, image in enumerate(images):
        rows = [tuple(spoken(row)) for row in drawn.words[n]]
        for words in all_captions(max_length):
            log_probs, maps = word_log_probs(model, image, words)
            share = math.exp(sum(log_probs))
            assert rows.count(tuple(words)) / 4000 == pytest.approx(share, abs=5 * math.sqrt(share / 4000) + 1e-3)
            if tuple(words) in rows:
                k = rows.index(tuple(words))
                assert float(drawn.log_probs[n, k]) == pytest.approx(sum(log_probs), rel=1e-9)
                assert drawn.word_log_probs[n, k, : len(words)].tolist() == pytest.approx(log_probs, rel=1e-9)
                if cell_type == "attn":
                    torch.testing.assert_close(drawn.weights[n, k, : len(words)], torch.cat(maps))
                    assert not drawn.weights[n, k, len(words) :].any()


@AND_DEEP
def test_captions_that_part_and_end_keep_their_own_states(make_model, cell_type):
    """Some end where others that began alike go on, in as many ways as before."""
    model, images = make_model(cell_type), pictures(2)
    for word in (NULL, START, UNK):
        model.output_projection.bias.data[word] = -1e3
    for seed in range(12):
        drawn = decoding.sample_captions(model, images, 5, 3, generator=torch.Generator().manual_seed(seed))
        for n, image in enumerate(images):
            for k, words in enumerate(map(spoken, drawn.words[n])):
                log_probs, _ = word_log_probs(model, image, words)
                assert drawn.word_log_probs[n, k, : len(words)].tolist() == pytest.approx(log_probs, rel=1e-9)


@CELLS
def test_a_generator_repeats_the_draw(make_model, cell_type):
    model, draws = make_model(cell_type), []
    for seed in (1, 1, 2):
        generator = torch.Generator().manual_seed(seed)
        draws.append(decoding.decode(model, pictures(), 8, top_p=0.95, num_captions=3, generator=generator).words)
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert draws[0].shape == (5, 3, 8)


@AND_DEEP
def test_drawing_from_one_word_is_greedy_for_a_batch(make_model, cell_type):
    model, images = make_model(cell_type), pictures(9)
    model.output_projection.bias.data[[NULL, START, UNK]] -= 100
    greedy = model.sample(images, 8)
    drawn = decoding.decode(model, images, 8, top_k=1)
    words, weights = greedy if cell_type in GRIDS else (greedy, None)
    assert torch.equal(words, drawn.words[:, 0])
    if cell_type in GRIDS:
        torch.testing.assert_close(weights, drawn.weights[:, 0])


# --- decode and its options -------------------------------------------------------------------------------


@AND_DEEP
@pytest.mark.parametrize("options", [{"beam_size": 2}, {"temperature": 2.0, "num_captions": 2}])
def test_a_picture_and_its_mirror_image_say_a_word_by_their_mean_probability(make_model, cell_type, options):
    model = make_model(cell_type)
    views = torch.stack([pictures(3), pictures(3, seed=1)], dim=1)
    found = decoding.decode(decoding.Mirrored(model), views, 5, **options)
    for n, k in itertools.product(range(3), range(2)):
        words = spoken(found.words[n, k])
        (first, maps), (second, mirrored) = (word_log_probs(model, view, words) for view in views[n])
        wanted = [math.log((math.exp(a) + math.exp(b)) / 2) for a, b in zip(first, second)]
        assert found.word_log_probs[n, k, : len(words)].tolist() == pytest.approx(wanted)
        for t in range(len(words) if maps[0] is not None else 0):
            torch.testing.assert_close(found.weights[n, k, t], (maps[t][0] + mirrored[t][0].flip(-1)) / 2)


def test_the_grid_of_a_mirrored_captioner_stays_the_same_object(make_model):
    """Then beam search does not copy it for each caption at each step."""
    mirrored = decoding.Mirrored(make_model("attn"))
    state = mirrored.begin(torch.stack([pictures(3), pictures(3, seed=1)], dim=1))
    _, after, _ = mirrored.step(torch.full((3,), START), state)
    assert after.A is state.A and after.h is not state.h and after.h.shape == state.h.shape


@CELLS
def test_fewer_captions_are_the_best_of_the_beam(make_model, cell_type):
    model, images = make_model(cell_type), pictures()
    found = decoding.decode(model, images, 6, beam_size=4, length_penalty=0.7, no_repeat_ngram=2)
    two = decoding.decode(model, images, 6, beam_size=4, length_penalty=0.7, no_repeat_ngram=2, num_captions=2)
    assert torch.equal(two.words, found.words[:, :2]) and torch.equal(two.log_probs, found.log_probs[:, :2])


@pytest.mark.parametrize("options", [{"beam_size": 4}, {"temperature": 1.0, "num_captions": 4}])
def test_another_order_is_that_of_all_captions_that_were_found(make_model, options):
    """Of the whole beam, before fewer of them are kept."""
    model, images = make_model("lstm"), pictures()

    def decode(**further):
        return decoding.decode(model, images, 6, **options | further, **(
            {"generator": torch.Generator().manual_seed(0)} if "temperature" in options else {}))  # fmt: skip

    def reverse(captions):
        return decoding.Captions(*(part if part is None else part.flip(1) for part in captions))

    kept = 2 if "beam_size" in options else 4
    last = decode(reorder=reverse, num_captions=kept)
    assert torch.equal(last.words, decode().words.flip(1)[:, :kept])


@CELLS
@pytest.mark.parametrize("options", [{"beam_size": 3}, {"temperature": 1.0}])
@pytest.mark.parametrize("n, max_length", [(0, 4), (1, 1), (3, 1)])
def test_edge_shapes(make_model, cell_type, options, n, max_length):
    found = decoding.decode(make_model(cell_type), pictures(n), max_length, num_captions=1, **options)
    assert found.words.shape == (n, 1, max_length) and found.words.dtype == torch.int64
    assert found.weights is None or found.weights.shape == (n, 1, max_length, 2, 3)
    assert not found.words.requires_grad and (found.weights is None) == (cell_type not in GRIDS)


@pytest.mark.parametrize("options, message", [
    ({"beam_size": 0}, "beam_size is 0; it must be a whole number, at least 1"),
    ({"beam_size": 2.5}, "beam_size is 2.5; it must be a whole number, at least 1"),
    ({"beam_size": 2, "length_penalty": -1}, r"length_penalty is -1; it must be in \[0, 10\]"),
    ({"beam_size": 2, "length_penalty": math.nan}, "length_penalty is nan; it must be in"),
    ({"length_penalty": 1, "beam_temperature": 2}, "length_penalty 1, beam_temperature 2: needs beam search"),
    ({"beam_size": 2, "beam_temperature": 0}, "beam_temperature is 0; it must be a positive number"),
    ({"beam_temperature": 2.0, "top_p": 0.5}, "beam_temperature 2.0, top_p 0.5: options of beam"),
    ({"no_repeat_ngram": -1}, "no_repeat_ngram is -1; it must be a whole number, at least 0"),
    ({"temperature": 0}, "temperature is 0; it must be a positive number; leave it out for greedy decoding"),
    ({"temperature": math.inf}, "temperature is inf; it must be a positive number"),
    ({"top_k": 0}, "top_k is 0; it must be a whole number, at least 1"),
    ({"top_p": 0}, r"top_p is 0; it must be in \(0, 1\]"),
    ({"top_p": 1.5}, r"top_p is 1.5; it must be in \(0, 1\]"),
    ({"beam_size": 3, "top_k": 5}, "beam_size 3, top_k 5: options of beam search and of sampling cannot be combined"),
    ({"length_penalty": 1, "temperature": 1.0}, "length_penalty 1, temperature 1.0: options of beam"),
    ({"generator": torch.Generator()}, "generator is given without sampling"),
    ({"beam_size": 2, "max_length": 0}, "max_length is 0; it must be a whole number, at least 1"),
    ({"temperature": 1.0, "max_length": 0}, "max_length is 0; it must be a whole number, at least 1"),
])  # fmt: skip
def test_options_that_make_no_sense(make_model, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        decoding.decode(make_model("lstm"), pictures(), **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options, message", [
    ({"beam_size": 2, "num_captions": 3}, "num_captions is 3; it must be at least 1 and at most the beam size, 2"),
    ({"num_captions": 0}, "num_captions is 0; it must be at least 1 and at most the beam size, 1"),
    ({"temperature": 1.0, "num_captions": 0}, "num_captions is 0; it must be a whole number, at least 1"),
])  # fmt: skip
def test_numbers_of_captions_that_make_no_sense(make_model, options, message):
    with pytest.raises(ValueError, match=message):
        decoding.decode(make_model("lstm"), pictures(), **options)


def test_damaged_weights_are_named(make_model):
    model = make_model("lstm")
    model.output_projection.weight.data[0, 0] = math.nan
    for options in ({"beam_size": 2}, {"temperature": 1.0}):
        with pytest.raises(ValueError, match="the scores are nan, so the model's weights are too"):
            decoding.decode(model, pictures(), **options)


@pytest.mark.parametrize("options", [{}, {"beam_size": 2}, {"temperature": 1.0}])
def test_modes_are_left_as_they_were(make_model, options):
    """Also a mode that differs from part to part, and after a failure."""
    model, seen = make_model("lstm").train(), []
    model.output_projection.eval()
    model.word_embedding.register_forward_pre_hook(lambda module, _: seen.append(module.training))
    decoding.decode(model, pictures(), 3, **options)
    assert seen and not any(seen)
    with pytest.raises(IndexError):
        decoding.decode(model, pictures()[:, :, 0], 3, **options)
    assert [m.training for m in model.modules()] == [m is not model.output_projection for m in model.modules()]


# --- any captioner with begin and step --------------------------------------------------------------------


class Story(NamedTuple):
    place: torch.Tensor
    extra: torch.Tensor | None
    constant: torch.Tensor


class Teller(nn.Module):
    """A captioner without a network: the scores of the next word depend on the word before and on the picture."""

    null, start, end, unk = 0, 1, 2, None

    def __init__(self, named):
        super().__init__()
        self.named = named
        self.table = torch.randn(6, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 2

    def begin(self, images):
        state = Story(torch.zeros(len(images), dtype=torch.float64), None, images)
        return state if self.named else tuple(state)

    def step(self, words, state):
        place, _, constant = state
        assert len(place) == len(constant) == len(words)
        moved = Story(place + words, None, constant)
        scores = self.table[words] + constant[:, None] * torch.sin(moved.place)[:, None] * torch.arange(6)
        return scores, moved if self.named else tuple(moved), None


@pytest.mark.parametrize("named", [True, False])
def test_any_state_that_is_a_tuple(named):
    model, images = Teller(named), torch.tensor([0.1, -0.7, 0.4, 0.9], dtype=torch.float64)
    together = decoding.beam_search(model, images, 7, 3)
    drawn = decoding.sample_captions(model, images, 7, 3, top_k=1)
    greedy = decoding.beam_search(model, images, 7, 1)
    for n in range(4):
        single = decoding.beam_search(model, images[n : n + 1], 7, 3)
        assert torch.equal(single.words[0], together.words[n])
        assert torch.equal(drawn.words[n], greedy.words[n].expand(3, -1))
    assert len({tuple(row) for row in together.words[:, 0].tolist()}) > 1
