"""Reranking: of the captions that a search finds for a picture, the one with the n-grams that its features suggest.

A captioner writes word by word, and its probabilities say little about a caption as a whole. Pictures with similar
features have captions with n-grams in common, so the TF-IDF vector of a picture's captions, as in CIDEr-D, can be
predicted from the features x by kernel ridge regression on the n training pictures. It has a closed form:

    y(x) = k(x)^T (G + ridge I)^-1 Y        G_ij = k(x_i, x_j) = exp(-|x_i - x_j|^2)

Row i of Y is the mean of the TF-IDF vectors of picture i's captions, each with norm 1. A caption is scored by the inner
product of its own vector and y(x), averaged over n-grams of 1 to 4 words (MAX_N).

The features are the mean and the maximum of each channel over the grid of the captioner's image encoder and, if wanted,
of other encoders, which see different things in a picture.

Sources: Devlin et al., "Exploring nearest neighbor approaches for image captioning", 2015 (the caption most like those
of similar pictures); Weston et al., "Kernel dependency estimation", 2002, section 3 (regression to structured outputs).

    N   pictures to caption    K   captions of a picture    T   words    C   channels    n   training pictures
    M   vectors of a picture: two for each encoder
"""

import functools
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from eecs598.encoders import load_encoder
from eecs598.metrics.cider import MAX_N

MAX_PICTURES = 10_000  # the first ones of a larger training set: G then takes 0.8 GB
RIDGE = 0.1
NO_WORD = -1
WORD_BITS = 15  # of a word in the code of an n-gram


def join(parts):
    """The `describe_grids` of several encoders, a list of (n, 2, C), as one (n, M, C): fewer channels get zeros."""
    width = max(part.shape[2] for part in parts)
    return torch.cat([F.pad(part, (0, width - part.shape[2])) for part in parts], dim=1)


def load_encoders(names, image_size):
    """The encoders of these names, for pictures resized to image_size, as the captioner's own encoder resizes them."""
    return [load_encoder(name, image_size=image_size) for name in names]


def reorder(captions, scores, lengths, weight, length_penalty=0.0):
    """The captions of each picture, best first by log p / length^length_penalty + weight * score.

    captions: eecs598.decoding.Captions, K for each of N pictures. scores and lengths (N, K); the length includes <END>,
    as in beam search.
    """
    total = captions.log_probs / lengths.clamp(min=1) ** length_penalty + weight * scores.to(captions.log_probs.device)
    order = total.argsort(dim=1, descending=True, stable=True)
    rows = torch.arange(len(order), device=order.device).unsqueeze(1)
    return type(captions)(*(None if part is None else part[rows.to(part.device), order.to(part.device)]
                            for part in captions))  # fmt: skip


def check_vocabulary(size):
    """Raise ValueError for a vocabulary of more words than a Reranker can tell apart."""
    if size > 1 << WORD_BITS:
        raise ValueError(f"the vocabulary has {size:,} words; a reranker takes at most {1 << WORD_BITS:,}: build the "
                         "data file with a higher --min-count")  # fmt: skip


class Reranker:
    """Scores captions by the n-grams that a picture's features suggest.

    features (n, M, C): of the training pictures, see `join`. First `describe_grids` from the captioner's own encoder,
    which may be averaged over views such as mirror images; then those from each of `encoders`, names as in
    `load_encoders`, for pictures resized to image_size. captions (n, K, T) int: their captions. special: the ids of
    words that are no part of a caption, such as <START>. Raises ValueError.
    """

    def __init__(self, features, captions, special, encoders=(), image_size=None):
        if features.ndim != 3 or captions.ndim != 3 or len(features) != len(captions):
            raise ValueError(f"features {tuple(features.shape)} and captions {tuple(captions.shape)} must be (n, M, C) "
                             "and (n, K, T) of the same n pictures")  # fmt: skip
        check_vocabulary(captions.max() + 1)
        self.features, self.captions = features[:MAX_PICTURES].half(), captions[:MAX_PICTURES].to(torch.int32)
        self.special, self.encoders, self.image_size = list(special), list(encoders), image_size

    def state(self):
        """What a checkpoint has to keep; `Reranker(**state)` is the same reranker."""
        return {"features": self.features, "captions": self.captions, "special": self.special,
                "encoders": self.encoders, "image_size": self.image_size}  # fmt: skip

    @functools.cached_property
    def other_encoders(self):
        """The encoders that `encoders` names, loaded once."""
        return load_encoders(self.encoders, self.image_size)

    def score(self, features, captions):
        """The scores (N, K) of captions (N, K, T) int64 for pictures with features (N, M, C). Float32, on the CPU.

        An empty caption has the score 0.
        """
        influence = self._influence(features.float().cpu())
        words = _only_words(captions.cpu(), self.special)
        return torch.stack([_score(words, table, influence) for table in self._tables]).mean(0)

    def _influence(self, features):
        """How much each training picture counts in the prediction for each picture: k(x)^T (G + ridge I)^-1, (N, n)."""
        known, factor = self._fit
        similar = _kernel(self._normalized(features), known)
        return torch.cholesky_solve(similar.double().t(), factor).t().float()

    @functools.cached_property
    def _fit(self):
        """The training pictures' features, and the Cholesky factor of G + ridge I."""
        known = self._normalized(self.features.float())
        gram = _kernel(known, known).double()
        gram.diagonal().add_(RIDGE)
        return known, torch.linalg.cholesky(gram)

    @functools.cached_property
    def _center(self):
        return self.features.float().mean(0)

    def _normalized(self, features):
        """Vectors with norm 1, (N, M * C), to which each encoder's mean and maximum contribute equally."""
        return F.normalize(features - self._center, dim=2).flatten(1) / features.shape[1] ** 0.5

    @functools.cached_property
    def _tables(self):
        words = _only_words(self.captions.long(), self.special)
        return [_tabulate(words, n) for n in range(1, MAX_N + 1)]


def _kernel(a, b):
    """The Gaussian kernel of vectors with norm 1, (N, D) and (n, D) -> (N, n). |a - b|^2 is 2 - 2 a^T b."""
    return (2 * (a @ b.t() - 1)).exp()


# ---------------------------------------------------------------------------------------------------------
# TF-IDF vectors of n-grams
# ---------------------------------------------------------------------------------------------------------


class _Table(NamedTuple):
    """The matrix Y for n-grams of one length, n-gram by n-gram: U n-grams, E weights that are not 0."""

    n: int
    codes: Tensor  # (U,), sorted
    idf: Tensor  # (U + 1,); the last one is that of n-grams that occur in no training caption
    offsets: Tensor  # (U,): where each n-gram's weights begin
    pictures: Tensor  # (E,)
    weights: Tensor  # (E,)


def _only_words(captions, special):
    """Captions with NO_WORD in place of special tokens."""
    return captions.masked_fill(torch.isin(captions, torch.tensor(special, dtype=captions.dtype)), NO_WORD)


def _ngrams(words, n):
    """The n-grams of captions (M, T): a code for each, and the row of its caption, both (P,)."""
    if words.shape[1] < n:
        return torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    windows = words.unfold(1, n, 1)  # (M, T - n + 1, n)
    codes = (windows << WORD_BITS * torch.arange(n)).sum(2)
    complete = (windows != NO_WORD).all(2)
    return codes[complete], complete.nonzero()[:, 0]


def _unit_vectors(index, rows, count, idf):
    """TF-IDF vectors with norm 1 of `count` captions from their n-grams. Returns n-gram, row and weight of each entry.

    index (P,): each n-gram's place in idf (U,); rows (P,): its caption.
    """
    entries, frequency = (rows * len(idf) + index).unique(return_counts=True)
    rows, index = entries // len(idf), entries % len(idf)
    weights = frequency * idf[index]
    norms = weights.new_zeros(count).index_add(0, rows, weights**2).sqrt()
    return index, rows, weights / norms[rows].clamp(min=1e-12)  # n-grams of all pictures have weight 0


def _tabulate(words, n):
    """The _Table of n-grams of n words in the training captions, words (n, K, T)."""
    count, K, _ = words.shape
    ngrams, rows = _ngrams(words.flatten(0, 1), n)
    codes, index = ngrams.unique(return_inverse=True)
    containing = (rows // K * len(codes) + index).unique() % max(1, len(codes))  # each n-gram once a picture
    idf = math.log(count) - F.pad(containing.bincount(minlength=len(codes)).log(), (0, 1))
    index, rows, weights = _unit_vectors(index, rows, count * K, idf)
    entries, place = (index * count + rows // K).unique(return_inverse=True)
    total = weights.new_zeros(len(entries)).index_add(0, place, weights / K)
    offsets = (entries // count).bincount(minlength=len(codes)).cumsum(0)
    return _Table(n, codes, idf, F.pad(offsets[:-1], (1, 0)), entries % count, total)


def _score(words, table, influence):
    """The inner products of captions' vectors, words (N, K, T), and the predicted ones; influence (N, n). (N, K)."""
    N, K, _ = words.shape
    ngrams, rows = _ngrams(words.flatten(0, 1), table.n)
    codes, index = ngrams.unique(return_inverse=True)
    place = torch.searchsorted(table.codes, codes)
    known = F.pad(table.codes, (0, 1), value=NO_WORD)[place] == codes
    idf = table.idf[place.where(known, len(table.codes))]
    index, rows, weights = _unit_vectors(index, rows, N * K, idf)
    predicted = torch.zeros(len(codes), N)
    predicted[known] = _predict(table, place[known], influence)
    return weights.new_zeros(N * K).index_add(0, rows, weights * predicted[index, rows // K]).view(N, K)


def _predict(table, ngrams, influence):
    """The predicted weights of some n-grams for each picture: rows of Y^T influence^T, (U', N)."""
    ends = F.pad(table.offsets[1:], (0, 1), value=len(table.pictures))
    lengths = (ends - table.offsets)[ngrams]
    starts = F.pad(lengths.cumsum(0)[:-1], (1, 0))
    chosen = torch.arange(int(lengths.sum())) + (table.offsets[ngrams] - starts).repeat_interleave(lengths)
    return F.embedding_bag(table.pictures[chosen], influence.t().contiguous(), starts, mode="sum",
                           per_sample_weights=table.weights[chosen])  # fmt: skip
