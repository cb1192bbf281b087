"""CIDEr-D: TF-IDF weighted n-gram similarity of a caption to the references of its picture, for n = 1 to 4.

Vedantam et al., "CIDEr: consensus-based image description evaluation", 2015. The scores equal those of COCO's
evaluation code, but single captions can be scored too, with the references processed only once.
"""

import math
from collections import Counter
from itertools import chain
from typing import NamedTuple

MAX_N = 4
SIGMA = 6.0  # of the Gaussian penalty on differences in length


class _Vector(NamedTuple):
    """The TF-IDF vector of a caption."""

    weights: dict  # n-gram -> TF-IDF weight
    norms: list  # Euclidean norm of the weights for n = 1, 2, 3, 4
    length: int  # in bigrams, as in COCO's evaluation code


class CiderD:
    """CIDEr-D of single captions. Document frequencies are computed once, from `references`.

    references: for each picture, its captions as sequences of tokens: words, ids or any other hashable values.
    """

    def __init__(self, references):
        counted = [[count_ngrams(words) for words in texts] for texts in references]
        document_frequency = Counter(chain.from_iterable(set().union(*texts) for texts in counted))
        self.max_idf = math.log(len(counted))  # of n-grams that occur in no reference
        self.idf = {ngram: self.max_idf - math.log(count) for ngram, count in document_frequency.items()}
        self.references = [[self._vector(counts) for counts in texts] for texts in counted]

    def score(self, picture, words):
        """CIDEr-D of a caption of the picture with this index."""
        caption = self._vector(count_ngrams(words))
        total = 0.0
        for reference in self.references[picture]:
            products = [0.0] * MAX_N
            for ngram, weight in caption.weights.items():
                if other := reference.weights.get(ngram):
                    products[len(ngram) - 1] += min(weight, other) * other  # clipped: repetition does not help
            penalty = math.exp(-((caption.length - reference.length) ** 2) / (2 * SIGMA**2))
            total += _cosines(products, caption, reference) * penalty
        return 10 * total / (MAX_N * len(self.references[picture]))

    def plain_score(self, picture, words):
        """CIDEr, not CIDEr-D, of a caption: equations 1 to 3 of the paper, without stemming."""
        caption, total = self._vector(count_ngrams(words)), 0.0
        for reference in self.references[picture]:
            products = [0.0] * MAX_N
            for ngram, weight in caption.weights.items():
                products[len(ngram) - 1] += weight * reference.weights.get(ngram, 0.0)
            total += _cosines(products, caption, reference)
        return 10 * total / (MAX_N * len(self.references[picture]))

    def _vector(self, counts):
        weights = {ngram: count * self.idf.get(ngram, self.max_idf) for ngram, count in counts.items()}
        squares = [0.0] * MAX_N
        for ngram, weight in weights.items():
            squares[len(ngram) - 1] += weight * weight
        length = sum(count for ngram, count in counts.items() if len(ngram) == 2)
        return _Vector(weights, [math.sqrt(square) for square in squares], length)


def _cosines(products, caption, reference):
    """The sum over n of the cosine similarities of two captions; 0 for an n without n-grams."""
    return sum(product / (a * b) for product, a, b in zip(products, caption.norms, reference.norms) if product)


def count_ngrams(words):
    """The n-gram counts of a sequence of words, n = 1 to 4."""
    words = tuple(words)
    return Counter(words[i : i + n] for n in range(1, MAX_N + 1) for i in range(len(words) - n + 1))
