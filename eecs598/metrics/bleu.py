"""A BLEU score for single captions, as a reward in self-critical training."""

import functools
import math
import operator

from eecs598.metrics.cider import MAX_N, count_ngrams


class Bleu:
    """A BLEU score for single captions: the arithmetic mean of the clipped n-gram precisions, n = 1 to 4, times the
    brevity penalty.

    BLEU-4 itself is a geometric mean, over a corpus; for a single caption it is mostly 0. references: as for `CiderD`.
    Source: Papineni et al., "BLEU", 2002, equations 1 to 3.
    """

    def __init__(self, references):
        self.most, self.lengths = [], []
        for texts in references:
            self.most.append(functools.reduce(operator.or_, map(count_ngrams, texts)))  # | is the maximum
            self.lengths.append([len(words) for words in texts])

    def score(self, picture, words):
        """The score of a caption of the picture with this index, from 0 to 1."""
        if not words:
            return 0.0
        matches = [0] * MAX_N
        for ngram, count in (count_ngrams(words) & self.most[picture]).items():  # & is the minimum: clipped counts
            matches[len(ngram) - 1] += count
        precision = sum(count / max(1, len(words) - n) for n, count in enumerate(matches)) / MAX_N
        closest = min(self.lengths[picture], key=lambda length: (abs(length - len(words)), length))
        return min(1.0, math.exp(1 - closest / len(words))) * precision
