"""Captions from a captioner's scores, for a whole batch of pictures at once: beam search, and drawing at random.

A captioner says one word at a time, through two methods that all cells share:

    begin(images) -> state                       the state from which a caption of each picture begins
    step(words, state) -> scores, state, maps    words (R,) before; scores (R, V) of the next; maps (R, h, w) or None

and it has the ids `start`, `end`, `null` and `unk` (None: no such word). A state is a tuple, named or not, of a
tensor with one row a caption and of others like it or None. Captions of one picture are rows side by side.

    N   pictures                        K   captions of a picture          R   rows, N * K
    T   words of a caption, at most     V   words in the vocabulary

Every probability is the model's own: the softmax of its scores over the whole vocabulary, whatever was searched or
drawn. Greedy decoding is the plain loop in `CaptioningRNN.sample`; a beam of 1 gives the same, except that <NULL>,
<START> and <UNK> are never said here.
"""

import contextlib
import math
from numbers import Integral, Real
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Captions(NamedTuple):
    """K captions of each of N pictures. Where there are fewer than K, the last are empty."""

    words: Tensor  # (N, K, T) int64, <NULL> after <END>
    word_log_probs: Tensor  # (N, K, T), 0 after <END>
    log_probs: Tensor  # (N, K), the sum of the words'; -inf where there is no caption
    weights: Tensor | None = None  # (N, K, T, h, w) on the CPU: where attention looked before each word, 0 after <END>


def decode(
    model, images, max_length=15, *, beam_size=1, num_captions=None, temperature=None, top_k=None, top_p=None,
    length_penalty=0.0, no_repeat_ngram=0, generator=None,
):  # fmt: skip
    """Captions by beam search or, given a temperature, top_k or top_p, drawn at random. Returns Captions.

    num_captions: how many of each picture; if None, the whole beam, or one that is drawn. beam_size,
    length_penalty: see `beam_search`. temperature, top_k, top_p, generator: see `sample_captions`. no_repeat_ngram: no
    run of so many words occurs twice in a caption; 0: no such rule. Raises ValueError for options that are out of
    range or do not go together.
    """
    drawing = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    drawing = {name: value for name, value in drawing.items() if value is not None}
    searching = {"beam_size": beam_size} if beam_size != 1 else {}
    searching |= {"length_penalty": length_penalty} if length_penalty != 0 else {}
    if drawing and searching:
        seen = ", ".join(f"{name} {value}" for name, value in (searching | drawing).items())
        raise ValueError(f"{seen}: these do not go together, either search for the best captions or draw some")
    if drawing:
        return sample_captions(
            model, images, max_length, 1 if num_captions is None else num_captions, **drawing,
            no_repeat_ngram=no_repeat_ngram, generator=generator,
        )  # fmt: skip
    if generator is not None:
        raise ValueError("a generator is given, but nothing is drawn at random: give a temperature too, such as 1.0")
    in_range = num_captions is None or (_is_whole(num_captions, 1) and num_captions <= beam_size)
    _check("num_captions", num_captions, in_range, f"from 1 to the beam_size, {beam_size}")
    found = beam_search(model, images, max_length, beam_size, length_penalty, no_repeat_ngram)
    return Captions(*(part if part is None else part[:, :num_captions] for part in found))


def _check(name, value, valid, wanted):
    if not valid:
        raise ValueError(f"{name} is {value!r}; it must be {wanted}")


def _is_whole(value, least):
    return isinstance(value, Integral) and value >= least


def _check_lengths(max_length, no_repeat_ngram):
    _check("max_length", max_length, _is_whole(max_length, 1), "a whole number from 1")
    _check("no_repeat_ngram", no_repeat_ngram, _is_whole(no_repeat_ngram, 0), "a whole number from 0")


def _check_sampling(temperature, top_k, top_p):
    positive = isinstance(temperature, Real) and 0 < temperature < math.inf
    _check("temperature", temperature, positive, "a positive number; for the likeliest words leave it out")
    _check("top_k", top_k, top_k is None or _is_whole(top_k, 1), "a whole number from 1")
    _check("top_p", top_p, top_p is None or (isinstance(top_p, Real) and 0 < top_p <= 1), "above 0, and at most 1")


class Mirrored(nn.Module):
    """A captioner that looks at each picture as it is and at its mirror image, and says a word by the mean probability.

    It takes pictures (N, 2, ...), or their features: each one, then its mirror image. Source: Krizhevsky et al.,
    "ImageNet classification with deep convolutional neural networks", 2012, section 4.1.
    """

    def __init__(self, model):
        super().__init__()
        self.model, self.start, self.end, self.null, self.unk = model, model.start, model.end, model.null, model.unk

    def begin(self, images):
        return _in_pairs(self.model.begin(images.flatten(0, 1)))

    def step(self, words, state):
        scores, state, maps = self.model.step(words.repeat_interleave(2), _one_by_one(state))
        log_probs = scores.log_softmax(1, torch.promote_types(scores.dtype, torch.float32))
        log_probs = log_probs.unflatten(0, (-1, 2)).logsumexp(1) - math.log(2)
        if maps is not None:
            as_it_is, mirrored = maps.unflatten(0, (-1, 2)).unbind(1)
            maps = (as_it_is + mirrored.flip(-1)) / 2
        return log_probs, _in_pairs(state), maps


def _like(state, parts):
    """A state of the same kind, of other parts."""
    return state._make(parts) if hasattr(state, "_make") else tuple(parts)


def _in_pairs(state):
    return _like(state, [None if part is None else part.unflatten(0, (-1, 2)) for part in state])


def _one_by_one(state):
    return _like(state, [None if part is None else part.flatten(0, 1) for part in state])


@contextlib.contextmanager
def evaluating(model):
    """Inside, every part of the model is in evaluation mode: a caption must not depend on the rest of its batch."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _next_log_probs(model, scores, written, no_repeat_ngram):
    """The log-probability of each next word, (R, V); -inf for words not to be said. written (R, t): those before."""
    log_probs = scores.log_softmax(1, torch.promote_types(scores.dtype, torch.float32))
    if log_probs[:, 0].isnan().any():
        raise ValueError("the model's scores are nan, so are its weights: train it again, at a lower learning rate")
    for word in (model.null, model.start, model.unk):
        if word is not None:
            log_probs[:, word] = -math.inf
    if 0 < no_repeat_ngram <= written.shape[1]:
        runs = written.unfold(1, no_repeat_ngram, 1)  # (R, t - n + 1, n): every run of n words so far
        latest = written[:, None, written.shape[1] - no_repeat_ngram + 1 :]  # (R, 1, n - 1)
        again = (runs[:, :, :-1] == latest).all(2)  # the run began as a next one would: do not end it alike
        log_probs.scatter_(1, runs[:, :, -1].where(again, model.null), -math.inf)
    return log_probs


# ---------------------------------------------------------------------------------------------------------
# Beam search
# ---------------------------------------------------------------------------------------------------------


class _Beams(NamedTuple):
    """Captions, finished or not, k of each of n pictures."""

    score: Tensor  # (n, k), -inf: there is no such caption
    words: Tensor  # (n, k, T)
    log_probs: Tensor  # (n, k, T), of each word
    origins: Tensor  # (n, k, T): in which of its picture's rows each word was scored

    def take(self, index):
        """Of each picture, the captions that index (n, j) names."""
        rows = torch.arange(len(index), device=index.device).unsqueeze(1)
        return _Beams(*(part[rows, index] for part in self))

    def best(self, count):
        return self.take(self.score.topk(count, dim=1).indices)

    def of(self, pictures):
        return _Beams(*(part[pictures] for part in self))


def _concatenate(beams, dim):
    return _Beams(*(torch.cat(parts, dim) for parts in zip(*beams)))


@torch.no_grad()
def beam_search(model, images, max_length=15, beam_size=3, length_penalty=0.0, no_repeat_ngram=0):
    """The beam_size best captions of each picture that a beam search finds, best first. Returns Captions.

    Each step extends the beam_size most probable unfinished captions of a picture. A caption is found when it ends
    and is just then among the beam_size most probable, ended or not. The search is over when beam_size are found;
    after max_length words, unfinished captions take the places that are left. Captions that were found are in the
    order of log p / length^length_penalty, <END> counted in the length: with 0 the most probable comes first, which
    tends to be short, with 1 the one whose words are most probable on average. Raises ValueError.

    Sources: Graves, "Sequence transduction with recurrent neural networks", 2012; for the division by a power of
    the length, Wu et al., "Google's neural machine translation system", 2016, section 7.
    """
    _check_lengths(max_length, no_repeat_ngram)
    _check("beam_size", beam_size, _is_whole(beam_size, 1), "a whole number from 1")
    in_range = isinstance(length_penalty, Real) and 0 <= length_penalty <= 10
    _check("length_penalty", length_penalty, in_range, "a number from 0 to 10")
    with evaluating(model):
        return _search(model, images, max_length, beam_size, length_penalty, no_repeat_ngram)


def _search(model, images, T, K, length_penalty, no_repeat_ngram):
    state = model.begin(images)
    searched = torch.arange(len(images), device=images.device)  # the pictures whose search is not over
    words = torch.full_like(searched, model.start)
    live = _captions(len(images), 1, T, 0.0, model.null, state[0])  # one of each picture, as yet without a word
    done = _captions(len(images), K, T, -math.inf, model.null, state[0])  # none
    found, maps = [], []
    for t in range(T):
        scores, next_state, weights = model.step(words, state)
        log_probs = _next_log_probs(model, scores, live.words[:, :, :t].flatten(0, 1), no_repeat_ngram)
        if weights is not None:
            maps.append(weights.new_zeros(len(images), K, *weights.shape[1:]))
            maps[t][searched, : live.score.shape[1]] = weights.view(*live.score.shape, *weights.shape[1:])
        live, done = _extend(live, done, log_probs, t, model.end, length_penalty)
        going = (done.score == -math.inf).any(1) & (live.score > -math.inf).any(1) & (t + 1 < T)
        found.append((searched[~going], _fill(done.of(~going), live.of(~going))))
        if not going.any():
            break
        first_rows = torch.arange(len(words), device=words.device).view(len(going), -1)[:, :1]
        rows = (first_rows + live.origins[:, :, t])[going].flatten()
        state = _follow(state, next_state, rows, same=bool(going.all()) and len(rows) == len(words))
        live, done, searched = live.of(going), done.of(going), searched[going]
        words = live.words[:, :, t].flatten()
    return _collect(found, maps, model.null)


def _captions(N, k, T, score, null, like):
    """k captions of each of N pictures, without a word; numbers are like the tensor `like`."""
    log_probs = like.new_zeros((N, k, T), dtype=torch.promote_types(like.dtype, torch.float32))
    words = torch.full_like(log_probs, null, dtype=torch.int64)
    return _Beams(torch.full_like(log_probs[:, :, 0], score), words, log_probs, torch.zeros_like(words))


def _extend(live, done, log_probs, t, end, length_penalty):
    """A word more for the live captions. log_probs (n * k, V). Returns the K best that go on, the K best that ended."""
    K, ways = done.score.shape[1], min(done.score.shape[1] + 1, log_probs.shape[1])
    log_probs, words = log_probs.topk(ways, dim=1)  # K ways to go on, and perhaps <END>
    log_probs, words = (part.view(*live.score.shape, ways) for part in (log_probs, words))
    score = (live.score.unsqueeze(2) + log_probs).flatten(1)
    score, place = score.topk(min(2 * K, score.shape[1]), dim=1)  # best first; each live caption ends only once
    longer = live.take(place // ways)._replace(score=score)
    longer.words[:, :, t] = words.flatten(1).gather(1, place)
    longer.log_probs[:, :, t] = log_probs.flatten(1).gather(1, place)
    longer.origins[:, :, t] = place // ways
    ends = longer.words[:, :, t] == end
    among_best = torch.arange(score.shape[1], device=ends.device) < K
    final = (score / (t + 1) ** length_penalty).masked_fill(~(ends & among_best), -math.inf)
    done = _concatenate([done, longer._replace(score=final)], 1).best(K)
    return longer._replace(score=score.masked_fill(ends, -math.inf)).best(min(K, score.shape[1])), done


def _follow(before, after, rows, same):
    """The state of the captions that go on, each from the row that it continues; same: of the same pictures as before.

    What a step hands through as it was, as the grid that is attended to, is the same for all captions of a picture:
    then it need not be copied.
    """
    parts = []
    for old, new in zip(before, after):
        stays = new is None or (new is old and same)
        parts.append(new if stays else new.index_select(0, rows))
    return _like(after, parts)


def _fill(done, live):
    """The captions that are done, and live ones in the places that are left; both best first."""
    both = _concatenate([done, live], 1)
    free_last = (both.score == -math.inf).byte().argsort(dim=1, stable=True)
    return both.take(free_last[:, : done.score.shape[1]])


def _collect(found, maps, null):
    """Captions from pairs (pictures, their _Beams); maps: the attention weights of each step, if there are any."""
    pictures, beams = zip(*found)
    beams = _concatenate(beams, 0).of(torch.cat(pictures).argsort())
    missing = beams.score == -math.inf
    words = beams.words.masked_fill(missing.unsqueeze(2), null)
    log_probs = beams.log_probs.masked_fill(missing.unsqueeze(2), 0)
    total = log_probs.sum(2).masked_fill(missing, -math.inf)
    return Captions(words, log_probs, total, _weights(maps, words, beams.origins, null))


def _weights(maps, words, origins, null):
    """The attention weights before each of words (N, K, T). maps: (N, K, h, w) of each step; origins: the k to take."""
    if not maps:
        return None
    steps = torch.arange(len(maps), device=words.device)
    pictures = torch.arange(len(words), device=words.device).view(-1, 1, 1)
    weights = torch.stack(maps)[steps, pictures, origins[:, :, : len(maps)]]  # (N, K, steps, h, w)
    weights = F.pad(weights, (0, 0, 0, 0, 0, words.shape[2] - len(maps)))
    return weights.masked_fill((words == null)[..., None, None], 0).cpu()


# ---------------------------------------------------------------------------------------------------------
# Drawing at random
# ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def sample_captions(
    model, images, max_length=15, num_captions=1, temperature=1.0, top_k=None, top_p=None, no_repeat_ngram=0,
    generator=None,
):  # fmt: skip
    """num_captions captions of each picture, each word drawn from the model's probabilities. Returns Captions.

    temperature divides the log-probabilities: below 1 likely words become likelier, above 1 less so. top_k: draw
    from the k likeliest words only; top_p: from the fewest likeliest words that together have at least probability
    p (both: first k, then p of what these have). generator: torch's, on the model's device. Raises ValueError.

    Sources: Fan et al., "Hierarchical neural story generation", 2018 (top k); Holtzman et al., "The curious case of
    neural text degeneration", 2020 (nucleus, top p).
    """
    _check_lengths(max_length, no_repeat_ngram)
    _check("num_captions", num_captions, _is_whole(num_captions, 1), "a whole number from 1")
    _check_sampling(temperature, top_k, top_p)
    with evaluating(model):
        return _sample(model, images, max_length, num_captions, no_repeat_ngram, (temperature, top_k, top_p, generator))


def _sample(model, images, T, K, no_repeat_ngram, how):
    state = model.begin(images)
    rows = torch.arange(len(images), device=images.device).repeat_interleave(K)
    state = _follow(state, state, rows, same=K == 1)
    words, live = torch.full_like(rows, model.start), torch.arange(len(rows), device=rows.device)
    captions, maps = _captions(len(images), K, T, 0.0, model.null, state[0]), []
    written, log_probs = captions.words.view(-1, T), captions.log_probs.view(-1, T)
    for t in range(T):
        scores, state, weights = model.step(words, state)
        next_log_probs = _next_log_probs(model, scores, written[live, :t], no_repeat_ngram)
        words = sample_words(next_log_probs, *how)
        written[live, t], log_probs[live, t] = words, next_log_probs.gather(1, words.unsqueeze(1)).squeeze(1)
        if weights is not None:
            maps.append(weights.new_zeros(len(images) * K, *weights.shape[1:]))
            maps[t][live] = weights
            maps[t] = maps[t].unflatten(0, (len(images), K))
        going = (words != model.end).nonzero().squeeze(1)  # the others have ended, and are not computed any more
        if len(going) == 0:
            break
        if len(going) < len(live):
            words, live, state = words[going], live[going], _follow(state, state, going, same=False)
    origins = torch.arange(K, device=words.device).unsqueeze(1).expand_as(captions.words)
    words, log_probs = captions.words, captions.log_probs
    return Captions(words, log_probs, log_probs.sum(2), _weights(maps, words, origins, model.null))


def sample_words(log_probs, temperature=1.0, top_k=None, top_p=None, generator=None):
    """Draw a word for each row of log_probs (R, V), as `sample_captions` does. Returns (R,) int64."""
    probs = ((log_probs - log_probs.amax(1, keepdim=True)) / temperature).softmax(1)
    if top_k is None and top_p is None:
        return _sample_columns(probs, generator)
    if top_k is None:
        probs, words = probs.sort(dim=1, descending=True)
    else:
        probs, words = probs.topk(min(top_k, probs.shape[1]), dim=1)  # likeliest first
    if top_p is not None and top_p < 1:
        before = probs.cumsum(1) - probs  # what the likelier words have together
        probs = probs.masked_fill(before >= top_p * probs.sum(1, keepdim=True), 0)
    return words.gather(1, _sample_columns(probs, generator).unsqueeze(1)).squeeze(1)


def _sample_columns(probs, generator):
    """A column for each row of probs (R, V), which need not sum to 1: where a uniform number falls among their sums.

    One random number a row; torch.multinomial takes one a column, a third of the time to draw a caption.
    """
    sums = probs.cumsum(1)
    point = torch.rand(len(probs), 1, dtype=probs.dtype, device=probs.device, generator=generator) * sums[:, -1:]
    point = torch.minimum(point, sums[:, -1:].nextafter(torch.zeros_like(point)))  # it may be rounded up to the end
    return torch.searchsorted(sums, point, right=True).squeeze(1)
