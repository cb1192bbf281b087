"""Self-critical training: a captioner practises on captions of its own, and is told how good each one is.

Cross-entropy teaches a model to continue people's captions. It is judged by whole captions of its own, scored with
CIDEr-D. So it draws several captions of a picture, each is scored, and those that score above the others of the picture
become likelier, the others less so: cross-entropy on its own captions, each one weighted by its advantage. This is
Williams's REINFORCE (1992), as Rennie et al., "Self-critical sequence training for image captioning", 2017, brought it
here; to compare a caption with the mean of the picture's others is from Luo, "A better variant of self-critical
sequence training", 2020.
"""

import functools
import hashlib
import math
import operator

import torch
from torch import nn

from eecs598 import decoding
from eecs598.metrics.cider import RUN_LENGTHS, CiderD, count_runs
from eecs598.training import checkpoints


class Bleu:
    """BLEU's precisions of captions, each by itself: the share of runs of n words that people have said, in the mean
    over n = 1 to 4, less if the caption is short.

    A run counts as often as the reference that has it most often. BLEU-4 takes the geometric mean over a whole set of
    captions; of a single caption that is mostly 0, and says nothing. references: as for `CiderD`.
    Source: Papineni et al., "BLEU", 2002, equations 1 to 3.
    """

    def __init__(self, references):
        counted = [map(count_runs, texts) for texts in references]
        self.most = [functools.reduce(operator.or_, texts) for texts in counted]  # | is the maximum
        self.lengths = [[len(words) for words in texts] for texts in references]

    def score(self, picture, words):
        """The mean precision of a caption of the picture of this number, from 0 to 1."""
        if not words:
            return 0.0
        said, known = count_runs(words), [0] * RUN_LENGTHS
        for run, count in (said & self.most[picture]).items():  # & is the minimum
            known[len(run) - 1] += count
        precision = sum(count / max(1, len(words) - n) for n, count in enumerate(known)) / RUN_LENGTHS
        closest = min(self.lengths[picture], key=lambda length: (abs(length - len(words)), length))
        return min(1.0, math.exp(1 - closest / len(words))) * precision


@torch.no_grad()
def scale_logits(model, temperature):
    """Divide a captioner's scores by a temperature, for good: below 1, likely words become likelier.

    Label smoothing leaves a tenth of the probability to words that make no sense; a caption drawn from such a model
    has one in most cases, and its score says little about the others.
    """
    if model.output_projection.weight is model.word_embedding.W_embed:
        raise ValueError("scores cannot be scaled where the output's weights are the word vectors (tie_embeddings)")
    for parameter in model.output_projection.parameters():
        parameter /= temperature


def _hash(value):
    return hashlib.sha256(repr(value).encode()).hexdigest()[:12]


class SelfCritical(nn.Module):
    """The loss of self-critical training, called as loss(images, pictures), for pictures whose references are known.

    objective: an `eecs598.training.objective.Objective`, whose model samples the captions. references: for each picture
    its captions as lists of words, as in a data file's train_references, but split. vocab: the data file's. samples:
    captions sampled for each picture, at least 2; max_length: their words at most. bleu: the weight of `Bleu`, beside
    CIDEr-D, in a caption's score. <END> counts as a word in a score, so that a caption that breaks off is worth less
    than one that ends. Raises ValueError.
    """

    def __init__(self, objective, references, vocab, samples=5, max_length=16, bleu=0.0):
        super().__init__()
        if samples < 2:
            raise ValueError(f"samples is {samples!r}; it must be at least 2: a caption is compared with the others")
        if not 0 <= bleu < math.inf:
            raise ValueError(f"bleu is {bleu!r}; it must be finite and at least 0")
        ids = vocab["token_to_idx"]
        self.objective, self.samples, self.max_length, self.null = objective, samples, max_length, ids["<NULL>"]
        self.start, self.end = ids["<START>"], ids["<END>"]
        # a word outside the vocabulary stands for itself: no caption can have it
        known = [[[ids.get(word, word) for word in (*words, "<END>")] for words in texts] for texts in references]
        self.scorers = [(1.0, CiderD(known)), *([(bleu, Bleu(known))] if bleu else [])]
        self.known = {"samples": samples, "references": _hash(known), **({"bleu": bleu} if bleu else {})}
        self.scores = []  # the mean score of each batch

    def describe(self):
        """What tells this training from another, as plain values: what it is scored on, and the model as it begins."""
        trained = [parameter for parameter in self.objective.parameters() if parameter.requires_grad]
        return {**self.known, "begins from": checkpoints.hash_tensors(trained)}

    def forward(self, images, pictures):
        """The loss of a batch: images (N, ...) as the model takes them; pictures (N,): their rows of the references.

        In evaluation mode `pictures` are captions (N, T + 1), and the loss is the objective's.
        """
        if not self.training:
            return self.objective(images, pictures)
        sampled = decoding.draw_captions(self.objective.model, images, self.max_length, self.samples).words  # (N, K, T)
        scores = torch.tensor([[self.score(picture, words) for words in captions]
                               for picture, captions in zip(pictures.tolist(), sampled.tolist())])  # fmt: skip
        self.scores.append(scores.mean().item())
        others = (scores.sum(1, keepdim=True) - scores) / (self.samples - 1)
        start = sampled.new_full((*sampled.shape[:2], 1), self.start)
        return self.objective(images, torch.cat([start, sampled], dim=2), (scores - others).to(images.device))

    def score(self, picture, words):
        """What a caption of a picture is worth: ids, up to <END>."""
        words = words[: words.index(self.end) + 1] if self.end in words else [w for w in words if w != self.null]
        return sum(weight * scorer.score(picture, words) for weight, scorer in self.scorers)
