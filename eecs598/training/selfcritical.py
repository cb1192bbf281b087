"""Self-critical sequence training: policy gradients (REINFORCE) on sampled captions, with CIDEr-D as the reward.

Cross-entropy trains a model to continue human captions, but the model is evaluated on whole captions of its own. Here
it samples several captions for each picture, and each is scored. Captions that score above the other samples for the
picture become more likely, the others less likely: the loss is cross-entropy on the samples, weighted by advantage.
This is REINFORCE (Williams, 1992) as applied to captioning by Rennie et al., "Self-critical sequence training for image
captioning", 2017. The baseline, the mean score of the other samples, is from Luo, "A better variant of self-critical
sequence training", 2020.
"""

import hashlib
import math
import time

import torch
from torch import nn

from eecs598 import decoding
from eecs598.coco.captions import MAX_LENGTH
from eecs598.encoders import get_encoder
from eecs598.features import fed_with_features
from eecs598.metrics.bleu import Bleu
from eecs598.metrics.cider import CiderD
from eecs598.progress import late_bar
from eecs598.training import checkpoints, solver
from eecs598.training.objective import find_parts


@torch.no_grad()
def scale_logits(model, temperature):
    """Divide the logits by a temperature, by scaling the output layer. Below 1, likely words become more likely.

    Label smoothing with 0.1 leaves a tenth of the probability to unsuitable words. Most captions sampled from such a
    model contain one, which makes their scores uninformative. Raises ValueError if the output layer shares its weights
    with the word vectors, and PartsError (a ValueError) if it is not found.
    """
    parts = find_parts(model)
    if parts.output.weight is parts.word_embedding.W_embed:
        raise ValueError("logits cannot be scaled with tie_embeddings: the output weights are the word vectors too")
    for parameter in parts.output.parameters():
        parameter /= temperature


def _hash(value):
    return hashlib.sha256(repr(value).encode()).hexdigest()[:12]


def _counting(references):
    """The references of each picture, with a bar: counting their n-grams takes seconds."""
    with late_bar(len(references), "n-grams of the captions") as bar:
        for texts in references:
            yield texts
            bar.update()


def _select(sampled, advantages, count, null):
    """The captions to train on: each one once, with the sum of its advantages; the largest sums of either sign.

    sampled (N, K, T), advantages (N, K). Returns both in the same shapes, with empty captions for those left out.
    """
    equal = (sampled.unsqueeze(2) == sampled.unsqueeze(1)).all(dim=3)  # (N, K, K)
    first = equal.byte().argmax(dim=2)  # of those equal to a caption
    repeated = first != torch.arange(first.shape[1], device=first.device)
    weights = torch.zeros_like(advantages).scatter_add(1, first, advantages)
    largest = weights.abs().masked_fill(repeated, -1).topk(count, dim=1).indices
    omitted = torch.ones_like(repeated).scatter(1, largest, False) | repeated
    return sampled.masked_fill(omitted.unsqueeze(2), null), weights.masked_fill(omitted, 0)


class SelfCritical(nn.Module):
    """The loss of self-critical training, called as loss(images, pictures).

    objective: an `eecs598.training.objective.Objective`, whose model samples the captions. references: for each
    picture, its captions as lists of words. vocab: of the data file. samples: captions sampled for each picture, at
    least 2. max_length: their maximum length in words. bleu: the weight of `Bleu` in the reward, added to CIDEr-D.
    kept: how many distinct captions of a picture to train on, those with the largest advantages, positive or negative;
    None: all. The others change the gradient little and take as much time (Xu et al., "Not all rollouts are useful:
    down-sampling rollouts in LLM reinforcement learning", 2025). <END> counts as a word, so that an unfinished caption
    scores lower than a finished one. Raises ValueError.
    """

    def __init__(self, objective, references, vocab, samples=5, max_length=MAX_LENGTH, bleu=0.0, kept=None):
        super().__init__()
        if samples < 2:
            raise ValueError(f"samples is {samples!r}; it must be at least 2, as the others are the baseline")
        if kept is not None and not 1 <= kept <= samples:
            raise ValueError(f"kept is {kept!r}; it must be from 1 to samples, {samples}, or None for all")
        if not 0 <= bleu < math.inf:
            raise ValueError(f"bleu is {bleu!r}; it must be finite and at least 0")
        ids = vocab["token_to_idx"]
        self.objective, self.samples, self.max_length, self.null = objective, samples, max_length, ids["<NULL>"]
        self.kept, self.start, self.end = kept or samples, ids["<START>"], ids["<END>"]
        # words outside the vocabulary stay strings, which match nothing in a sampled caption
        known = [[[ids.get(word, word) for word in (*words, "<END>")] for words in texts] for texts in references]
        self.scorers = [(1.0, CiderD(_counting(known))), *([(bleu, Bleu(_counting(known)))] if bleu else [])]
        self.known = {"samples": samples, "references": _hash(known), **({"bleu": bleu} if bleu else {}),
                      **({"kept": kept} if kept else {})}  # fmt: skip
        self.rewards = []  # mean reward of each batch

    def describe(self):
        """What identifies this run, as plain values: the rewards and the initial model."""
        trained = [parameter for parameter in self.objective.parameters() if parameter.requires_grad]
        return {**self.known, "begins from": checkpoints.hash_tensors(trained)}

    def forward(self, images, pictures):
        """The loss of a batch. images (N, ...): input of the model; pictures (N,): their indices in the references.

        In evaluation mode, `pictures` are captions (N, T + 1), and this is the loss of the objective.
        """
        if not self.training:
            return self.objective(images, pictures)
        model, K = self.objective.model, self.samples
        seen = get_encoder(model)(images)  # once, for the samples and for the loss
        with fed_with_features(model):
            sampled = decoding.sample_captions(model, seen.detach(), self.max_length, K).words  # (N, K, T)
            scores = torch.tensor([[self.score(picture, words) for words in captions]
                                   for picture, captions in zip(pictures.tolist(), sampled.tolist())])  # fmt: skip
            self.rewards.append(scores.mean().item())
            baseline = (scores.sum(1, keepdim=True) - scores) / (K - 1)
            captions, weights = _select(sampled, (scores - baseline).to(sampled.device), self.kept, self.null)
            start = captions.new_full((*captions.shape[:2], 1), self.start)
            return self.objective(seen, torch.cat([start, captions], dim=2), weights)

    def time_step(self, images, batch_size, precision="float32"):
        """The seconds that a step on a batch takes at present. Leaves the model and the random numbers as they were.

        images (n, ...): input of the model, for the first n pictures. precision: as in `Options`.
        """
        device, buffers = next(self.parameters()).device, [buffer.clone() for buffer in self.buffers()]
        precision = solver.best_precision(device) if precision == "auto" else precision
        drawn_on = [device] if device.type == "cuda" else []
        with decoding.evaluating(self), torch.random.fork_rng(drawn_on), solver.autocast(device, precision):
            self.train()
            for count in (2, batch_size):  # the first batch is also compared with the model's own loss
                began = time.perf_counter()
                pictures = torch.arange(min(count, len(images)))
                self(images[pictures].to(device), pictures).backward()
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                seconds = time.perf_counter() - began
        self.rewards.clear()
        self.zero_grad(set_to_none=True)
        for buffer, before in zip(self.buffers(), buffers):  # the statistics of batch normalization
            buffer.copy_(before)
        return seconds

    def score(self, picture, words):
        """The reward of a caption, given as word ids, for a picture."""
        words = words[: words.index(self.end) + 1] if self.end in words else [w for w in words if w != self.null]
        return sum(weight * scorer.score(picture, words) for weight, scorer in self.scorers)
