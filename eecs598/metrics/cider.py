"""CIDEr-D: how like a picture's references a caption is, in runs of 1 to 4 words, rare ones counting more.

Vedantam et al., "CIDEr: consensus-based image description evaluation", 2015. Scores are those of COCO's evaluation
code, but a caption can be scored by itself, with the references weighed only once.
"""

import math
from collections import Counter
from itertools import chain
from typing import NamedTuple

RUN_LENGTHS = 4  # CIDEr counts runs of 1 to 4 words
SIGMA = 6.0  # of CIDEr-D's penalty on a length other than the reference's


class _Weighed(NamedTuple):
    """A caption as CIDEr sees it."""

    weights: dict  # run of words -> how often it occurs, times how rare it is
    norms: list  # the root of the sum of squares of the weights of the runs of 1, 2, 3 and 4 words
    length: int  # in pairs of words, as in the field's scorer


class CiderD:
    """CIDEr-D of captions, each by itself, with the rarity of words taken from `references` once and for all.

    references: for each picture its captions, sequences of whatever stands for a word, such as ids.
    """

    def __init__(self, references):
        counted = [[count_runs(words) for words in texts] for texts in references]
        pictures = Counter(chain.from_iterable(set().union(*texts) for texts in counted))
        self.rarest = math.log(len(counted))
        self.rarity = {run: self.rarest - math.log(count) for run, count in pictures.items()}
        self.references = [[self._weigh(runs) for runs in texts] for texts in counted]

    def score(self, picture, words):
        """CIDEr-D of a caption of the picture of this number."""
        caption = self._weigh(count_runs(words))
        total = 0.0
        for reference in self.references[picture]:
            products = [0.0] * RUN_LENGTHS
            for run, weight in caption.weights.items():
                if other := reference.weights.get(run):
                    products[len(run) - 1] += min(weight, other) * other  # to say it more often does not help
            penalty = math.exp(-((caption.length - reference.length) ** 2) / (2 * SIGMA**2))
            total += _cosines(products, caption, reference) * penalty
        return 10 * total / (RUN_LENGTHS * len(self.references[picture]))

    def plain_score(self, picture, words):
        """CIDEr without the "-D" (the paper's equations 1 to 3, words not stemmed) of a caption of that picture."""
        caption, total = self._weigh(count_runs(words)), 0.0
        for reference in self.references[picture]:
            products = [0.0] * RUN_LENGTHS
            for run, weight in caption.weights.items():
                products[len(run) - 1] += weight * reference.weights.get(run, 0.0)
            total += _cosines(products, caption, reference)
        return 10 * total / (RUN_LENGTHS * len(self.references[picture]))

    def _weigh(self, runs):
        weights = {run: count * self.rarity.get(run, self.rarest) for run, count in runs.items()}
        squares = [0.0] * RUN_LENGTHS
        for run, weight in weights.items():
            squares[len(run) - 1] += weight * weight
        length = sum(count for run, count in runs.items() if len(run) == 2)
        return _Weighed(weights, [math.sqrt(square) for square in squares], length)


def _cosines(products, caption, reference):
    """The cosines of two weighed captions' runs of 1, 2, 3 and 4 words, added up; of a length that has none, 0."""
    return sum(product / (a * b) for product, a, b in zip(products, caption.norms, reference.norms) if product)


def count_runs(words):
    """How often each run of 1 to 4 words occurs, words being a sequence."""
    words = tuple(words)
    return Counter(words[i : i + n] for n in range(1, RUN_LENGTHS + 1) for i in range(len(words) - n + 1))
