"""Decoding for a batch of pictures: beam search, and sampling with temperature, top k and top p.

A captioner generates one word at a time, through two methods that all cell types have:

    begin(images) -> state                       the initial state of a caption for each picture
    step(words, state) -> scores, state, maps    words (R,): the previous words; scores (R, V) of the next ones;
                                                 maps (R, h, w): attention weights, or None

It also has the word ids `start`, `end`, `null` and `unk` (None if there is no such word). A state is a tuple or named
tuple whose first item is a tensor with one row for each caption; the others are such tensors or None. The captions of a
picture are in consecutive rows. A named tuple may list in `of_pictures` the items that its captions share, such as the
pictures' grids: they stay as they are.

    N   pictures                     K   captions for a picture          R   rows, N * K
    T   maximum number of words      V   words in the vocabulary

All probabilities returned are the model's: the softmax of its scores over the whole vocabulary, regardless of the
decoding options. Greedy decoding is the plain loop in `CaptioningRNN.sample`; beam search with beam size 1 gives the
same captions, except that <NULL>, <START> and <UNK> are banned here.
"""

import contextlib
import math
from numbers import Integral, Real
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Captions(NamedTuple):
    """K captions for each of N pictures. If there are fewer than K, the last ones are empty."""

    words: Tensor  # (N, K, T) int64, <NULL> after <END>
    word_log_probs: Tensor  # (N, K, T), 0 after <END>
    log_probs: Tensor  # (N, K), of whole captions; -inf where there is no caption
    weights: Tensor | None = None  # (N, K, T, h, w) on the CPU: attention weights for each word, 0 after <END>


def decode(
    model, images, max_length=15, *, beam_size=1, num_captions=None, temperature=None, top_k=None, top_p=None,
    length_penalty=0.0, beam_temperature=1.0, no_repeat_ngram=0, generator=None, reorder=None,
):  # fmt: skip
    """Captions by beam search or, if a temperature, top_k or top_p is given, by sampling. Returns Captions.

    num_captions: captions for each picture; if None, the whole beam, or one sample. beam_size, length_penalty,
    beam_temperature: see `beam_search`. temperature, top_k, top_p, generator: see `sample_captions`. no_repeat_ngram:
    no n-gram of this length occurs twice in a caption; 0 turns this off. reorder: a function from the Captions that
    were found, all of the beam, to the same in another order, such as by `eecs598.reranking`. Raises ValueError for
    options that are out of range or contradict each other.
    """
    sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    sampling = {name: value for name, value in sampling.items() if value is not None}
    searching = {"beam_size": beam_size} if beam_size != 1 else {}
    searching |= {"length_penalty": length_penalty} if length_penalty != 0 else {}
    searching |= {"beam_temperature": beam_temperature} if beam_temperature != 1 else {}
    if sampling and searching:
        seen = ", ".join(f"{name} {value}" for name, value in (searching | sampling).items())
        raise ValueError(f"{seen}: options of beam search and of sampling cannot be combined")
    if sampling:
        sampled = sample_captions(
            model, images, max_length, 1 if num_captions is None else num_captions, **sampling,
            no_repeat_ngram=no_repeat_ngram, generator=generator,
        )  # fmt: skip
        return reorder(sampled) if reorder else sampled
    if beam_size == 1 and searching:
        seen = ", ".join(f"{name} {value}" for name, value in searching.items())
        raise ValueError(f"{seen}: needs beam search; give a beam_size above 1 too")
    if generator is not None:
        raise ValueError("generator is given without sampling; give a temperature too, such as 1.0")
    in_range = num_captions is None or (_is_whole(num_captions, 1) and num_captions <= beam_size)
    _check("num_captions", num_captions, in_range, f"at least 1 and at most the beam size, {beam_size}")
    found = beam_search(model, images, max_length, beam_size, length_penalty, no_repeat_ngram, beam_temperature)
    found = reorder(found) if reorder else found
    return Captions(*(part if part is None else part[:, :num_captions] for part in found))


def _check(name, value, valid, wanted):
    if not valid:
        raise ValueError(f"{name} is {value!r}; it must be {wanted}")


def _is_whole(value, least):
    return isinstance(value, Integral) and value >= least


def _check_lengths(max_length, no_repeat_ngram):
    _check("max_length", max_length, _is_whole(max_length, 1), "a whole number, at least 1")
    _check("no_repeat_ngram", no_repeat_ngram, _is_whole(no_repeat_ngram, 0), "a whole number, at least 0")


def _check_sampling(temperature, top_k, top_p):
    positive = isinstance(temperature, Real) and 0 < temperature < math.inf
    _check("temperature", temperature, positive, "a positive number; leave it out for greedy decoding")
    _check("top_k", top_k, top_k is None or _is_whole(top_k, 1), "a whole number, at least 1")
    _check("top_p", top_p, top_p is None or (isinstance(top_p, Real) and 0 < top_p <= 1), "in (0, 1]")


class Mirrored(nn.Module):
    """Test-time augmentation: a captioner that averages the word probabilities for a picture and its mirror image.

    It takes pictures, or features, as pairs (N, 2, ...): each picture, then its mirror image. Source: Krizhevsky et
    al., "ImageNet classification with deep convolutional neural networks", 2012, section 4.1.
    """

    def __init__(self, model):
        super().__init__()
        self.model, self.start, self.end, self.null, self.unk = model, model.start, model.end, model.null, model.unk

    def begin(self, images):
        return _in_pairs(self.model.begin(images.flatten(0, 1)))

    def step(self, words, state):
        given = _unpaired(state)
        scores, after, maps = self.model.step(words.repeat_interleave(2), given)
        log_probs = scores.log_softmax(1, torch.promote_types(scores.dtype, torch.float32))
        log_probs = log_probs.unflatten(0, (-1, 2)).logsumexp(1) - math.log(2)
        if maps is not None:
            plain, mirrored = maps.unflatten(0, (-1, 2)).unbind(1)
            maps = (plain + mirrored.flip(-1)) / 2
        paired = _in_pairs(after)
        # What the step returned as it was, such as the grid, stays the same object here too, and need not be copied.
        parts = [before if old is new else pair for before, old, new, pair in zip(state, given, after, paired)]
        return log_probs, _like(paired, parts), maps


def _like(state, parts):
    """A state of the same type, made of other parts."""
    return state._make(parts) if hasattr(state, "_make") else tuple(parts)


def _of_captions(state, change):
    """A state whose parts with a row for each caption are change(part)."""
    names, shared = getattr(state, "_fields", [""] * len(state)), getattr(state, "of_pictures", ())
    return _like(state, [part if part is None or name in shared else change(part) for name, part in zip(names, state)])


def _in_pairs(state):
    return _of_captions(state, lambda part: part.unflatten(0, (-1, 2)))


def _unpaired(state):
    return _of_captions(state, lambda part: part.flatten(0, 1))


@contextlib.contextmanager
def evaluating(model):
    """A context in which all modules of the model are in evaluation mode, so that captions do not depend on the batch.

    Afterwards each module is back in its previous mode.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _next_log_probs(model, scores, written, no_repeat_ngram):
    """The log-probabilities of the next words, (R, V), -inf for banned ones. written (R, t): the previous words."""
    log_probs = scores.log_softmax(1, torch.promote_types(scores.dtype, torch.float32))
    if log_probs[:, 0].isnan().any():
        raise ValueError("the scores are nan, so the model's weights are too: train again with a lower learning rate")
    for word in (model.null, model.start, model.unk):
        if word is not None:
            log_probs[:, word] = -math.inf
    if 0 < no_repeat_ngram <= written.shape[1]:
        ngrams = written.unfold(1, no_repeat_ngram, 1)  # (R, t - n + 1, n): every n-gram so far
        prefix = written[:, None, written.shape[1] - no_repeat_ngram + 1 :]  # (R, 1, n - 1)
        matches = (ngrams[:, :, :-1] == prefix).all(2)  # n-grams that could be repeated: ban their last words
        log_probs.scatter_(1, ngrams[:, :, -1].where(matches, model.null), -math.inf)
    return log_probs


# ---------------------------------------------------------------------------------------------------------
# Beam search
# ---------------------------------------------------------------------------------------------------------


class _Beams(NamedTuple):
    """Hypotheses, finished or not: k captions for each of n pictures."""

    score: Tensor  # (n, k), -inf for an empty place
    words: Tensor  # (n, k, T)
    log_probs: Tensor  # (n, k, T), of each word
    origins: Tensor  # (n, k, T): which of the picture's rows computed each word's probability

    def take(self, index):
        """Captions index[n, j] of picture n."""
        rows = torch.arange(len(index), device=index.device).unsqueeze(1)
        return _Beams(*(part[rows, index] for part in self))

    def best(self, count):
        return self.take(self.score.topk(count, dim=1).indices)

    def of(self, pictures):
        return _Beams(*(part[pictures] for part in self))


def _concatenate(beams, dim):
    return _Beams(*(torch.cat(parts, dim) for parts in zip(*beams)))


@torch.no_grad()
def beam_search(
    model, images, max_length=15, beam_size=3, length_penalty=0.0, no_repeat_ngram=0, beam_temperature=1.0
):
    """Beam search: the best beam_size captions found for each picture, best first. Returns Captions.

    Each step extends the beam_size most probable unfinished hypotheses of a picture. A hypothesis is finished when it
    ends with <END> and is among the beam_size most probable at that step. The search stops when beam_size are finished;
    after max_length words, unfinished hypotheses fill the remaining places. Finished captions are ranked by
    log p / length^length_penalty, where the length includes <END>: 0 ranks by probability, which favours short
    captions, 1 by the mean log-probability of the words. beam_temperature: the search uses the probabilities of the
    logits divided by it; above 1, its captions differ more from each other. Raises ValueError.

    Sources: Graves, "Sequence transduction with recurrent neural networks", 2012; for length normalization, Wu et al.,
    "Google's neural machine translation system", 2016, section 7.
    """
    _check_lengths(max_length, no_repeat_ngram)
    _check("beam_size", beam_size, _is_whole(beam_size, 1), "a whole number, at least 1")
    in_range = isinstance(length_penalty, Real) and 0 <= length_penalty <= 10
    _check("length_penalty", length_penalty, in_range, "in [0, 10]")
    in_range = isinstance(beam_temperature, Real) and 0 < beam_temperature < math.inf
    _check("beam_temperature", beam_temperature, in_range, "a positive number")
    with evaluating(model):
        return _search(model, images, max_length, beam_size, length_penalty, no_repeat_ngram, beam_temperature)


def _search(model, images, T, K, length_penalty, no_repeat_ngram, temperature):
    state = model.begin(images)
    searched = torch.arange(len(images), device=images.device)  # pictures whose search has not stopped
    words = torch.full_like(searched, model.start)
    live = _captions(len(images), 1, T, 0.0, model.null, state[0])  # an empty caption for each picture
    done = _captions(len(images), K, T, -math.inf, model.null, state[0])  # none yet
    found, maps = [], []
    for t in range(T):
        scores, next_state, weights = model.step(words, state)
        log_probs = _next_log_probs(model, scores, live.words[:, :, :t].flatten(0, 1), no_repeat_ngram)
        if weights is not None:
            maps.append(weights.new_zeros(len(images), K, *weights.shape[1:]))
            maps[t][searched, : live.score.shape[1]] = weights.view(*live.score.shape, *weights.shape[1:])
        live, done = _extend(live, done, log_probs, t, model.end, length_penalty, temperature)
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
    """k empty captions for each of N pictures, with the device and dtype of the tensor `like`."""
    log_probs = like.new_zeros((N, k, T), dtype=torch.promote_types(like.dtype, torch.float32))
    words = torch.full_like(log_probs, null, dtype=torch.int64)
    return _Beams(torch.full_like(log_probs[:, :, 0], score), words, log_probs, torch.zeros_like(words))


def _extend(live, done, log_probs, t, end, length_penalty, temperature):
    """Extend live captions by one word; log_probs (n * k, V). Returns the K best unfinished and the K best finished."""
    K, branches = done.score.shape[1], min(done.score.shape[1] + 1, log_probs.shape[1])
    softened = log_probs if temperature == 1 else (log_probs / temperature).log_softmax(1)
    softened, words = softened.topk(branches, dim=1)  # K words, and perhaps <END>
    parts = softened, words, log_probs.gather(1, words)
    softened, words, log_probs = (part.view(*live.score.shape, branches) for part in parts)
    score = (live.score.unsqueeze(2) + softened).flatten(1)
    score, place = score.topk(min(2 * K, score.shape[1]), dim=1)  # at most K of them end: each live caption just once
    longer = live.take(place // branches)._replace(score=score)
    longer.words[:, :, t] = words.flatten(1).gather(1, place)
    longer.log_probs[:, :, t] = log_probs.flatten(1).gather(1, place)
    longer.origins[:, :, t] = place // branches
    ends = longer.words[:, :, t] == end
    among_best = torch.arange(score.shape[1], device=ends.device) < K
    final = (score / (t + 1) ** length_penalty).masked_fill(~(ends & among_best), -math.inf)
    done = _concatenate([done, longer._replace(score=final)], 1).best(K)
    return longer._replace(score=score.masked_fill(ends, -math.inf)).best(min(K, score.shape[1])), done


def _follow(before, after, rows, same):
    """The state of the remaining captions: the given rows of the state `after` a step.

    same: the pictures and their numbers of captions have not changed. Then a part that the step returned as it was,
    such as the grid for attention, need not be copied, as it is the same for all captions of a picture.
    """
    unchanged = {id(part) for part in before} if same else ()
    return _of_captions(after, lambda part: part if id(part) in unchanged else part.index_select(0, rows))


def _fill(done, live):
    """The finished captions, then live ones in the remaining places, each best first."""
    both = _concatenate([done, live], 1)
    free_last = (both.score == -math.inf).byte().argsort(dim=1, stable=True)
    return both.take(free_last[:, : done.score.shape[1]])


def _collect(found, maps, null):
    """The Captions of (pictures, _Beams) pairs. maps: the attention weights of each step, if any."""
    pictures, beams = zip(*found)
    beams = _concatenate(beams, 0).of(torch.cat(pictures).argsort())
    missing = beams.score == -math.inf
    words = beams.words.masked_fill(missing.unsqueeze(2), null)
    log_probs = beams.log_probs.masked_fill(missing.unsqueeze(2), 0)
    total = log_probs.sum(2).masked_fill(missing, -math.inf)
    return Captions(words, log_probs, total, _weights(maps, words, beams.origins, null))


def _weights(maps, words, origins, null):
    """The attention weights for words (N, K, T). maps: (N, K, h, w) of each step; origins: the k of each word."""
    if not maps:
        return None
    steps = torch.arange(len(maps), device=words.device)
    pictures = torch.arange(len(words), device=words.device).view(-1, 1, 1)
    weights = torch.stack(maps)[steps, pictures, origins[:, :, : len(maps)]]  # (N, K, steps, h, w)
    weights = F.pad(weights, (0, 0, 0, 0, 0, words.shape[2] - len(maps)))
    return weights.masked_fill((words == null)[..., None, None], 0).cpu()


# ---------------------------------------------------------------------------------------------------------
# Sampling
# ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def sample_captions(
    model, images, max_length=15, num_captions=1, temperature=1.0, top_k=None, top_p=None, no_repeat_ngram=0,
    generator=None,
):  # fmt: skip
    """Sample num_captions captions for each picture, word by word from the model's distribution. Returns Captions.

    temperature divides the logits: below 1, likely words become more likely, above 1 less. top_k: sample from the k
    most likely words only. top_p: sample from the smallest set of most likely words with total probability p or more
    (with both, p refers to the k words, renormalized). generator: a torch.Generator on the model's device. Raises
    ValueError.

    Sources: Fan et al., "Hierarchical neural story generation", 2018 (top k); Holtzman et al., "The curious case of
    neural text degeneration", 2020 (nucleus, top p).
    """
    _check_lengths(max_length, no_repeat_ngram)
    _check("num_captions", num_captions, _is_whole(num_captions, 1), "a whole number, at least 1")
    _check_sampling(temperature, top_k, top_p)
    with evaluating(model):
        return _sample(model, images, max_length, num_captions, no_repeat_ngram, (temperature, top_k, top_p, generator))


def _sample(model, images, T, K, no_repeat_ngram, how):
    """Captions of a picture that begin alike share a row of the state; row: that of each live caption."""
    state, (N, device) = model.begin(images), (len(images), images.device)
    row = torch.arange(N, device=device).repeat_interleave(K)
    live, last = torch.arange(N * K, device=device), torch.full((N,), model.start, device=device)
    captions, maps = _captions(N, K, T, 0.0, model.null, state[0]), []
    written, log_probs = captions.words.view(-1, T), captions.log_probs.view(-1, T)
    for t in range(T):
        scores, state, weights = model.step(last, state)
        next_log_probs = _next_log_probs(model, scores[row], written[live, :t], no_repeat_ngram)
        words = sample_words(next_log_probs, *how)
        written[live, t], log_probs[live, t] = words, next_log_probs.gather(1, words.unsqueeze(1)).squeeze(1)
        if weights is not None:
            maps.append(weights.new_zeros(N * K, *weights.shape[1:]))
            maps[t][live] = weights[row]
            maps[t] = maps[t].unflatten(0, (N, K))
        going = words != model.end  # the others are finished and no longer computed
        live, row, words = live[going], row[going], words[going]
        if len(live) == 0:
            break
        extended, row = (row * scores.shape[1] + words).unique(return_inverse=True)
        parents, last = extended // scores.shape[1], extended % scores.shape[1]
        if not torch.equal(parents, torch.arange(len(scores), device=device)):
            state = _follow(state, state, parents, same=False)
    origins = torch.arange(K, device=device).unsqueeze(1).expand_as(captions.words)
    words, log_probs = captions.words, captions.log_probs
    return Captions(words, log_probs, log_probs.sum(2), _weights(maps, words, origins, model.null))


def sample_words(log_probs, temperature=1.0, top_k=None, top_p=None, generator=None):
    """Sample a word for each row of log_probs (R, V), with the options of `sample_captions`. Returns (R,) int64."""
    probs = ((log_probs - log_probs.amax(1, keepdim=True)) / temperature).softmax(1)
    if top_k is None and top_p is None:
        return _sample_columns(probs, generator)
    if top_k is None:
        probs, words = probs.sort(dim=1, descending=True)
    else:
        probs, words = probs.topk(min(top_k, probs.shape[1]), dim=1)  # most likely first
    if top_p is not None and top_p < 1:
        before = probs.cumsum(1) - probs  # total probability of the more likely words
        probs = probs.masked_fill(before >= top_p * probs.sum(1, keepdim=True), 0)
    return words.gather(1, _sample_columns(probs, generator).unsqueeze(1)).squeeze(1)


def _sample_columns(probs, generator):
    """Sample a column for each row of probs (R, V), which need not sum to 1, by inverting the cumulative distribution.

    This takes one random number for each row. torch.multinomial takes one for each element, which is a third of the
    time of sampling a caption.
    """
    sums = probs.cumsum(1)
    point = torch.rand(len(probs), 1, dtype=probs.dtype, device=probs.device, generator=generator) * sums[:, -1:]
    point = torch.minimum(point, sums[:, -1:].nextafter(torch.zeros_like(point)))  # rounding may have reached the end
    return torch.searchsorted(sums, point, right=True).squeeze(1)
