"""The decoding options that `evaluate` and `caption` share."""

import functools

import torch

from eecs598 import commands

SAMPLING = ("temperature", "top_k", "top_p")
NAMES = (
    "beam_size", "num_captions", "length_penalty", "beam_temperature", "no_repeat_ngram", *SAMPLING, "mirror", "rerank",
)  # fmt: skip


def add_options(group):
    """Add the decoding options to an argument group, for `read`."""
    add = group.add_argument
    add("--beam", type=commands.positive, dest="beam_size", metavar="K", help="beam search with a beam of K")
    add("--length-penalty", type=commands.zero_or_more, metavar="A", help="rank by log p / length^A; 0 favours short "
        "captions (0)")  # fmt: skip
    add("--beam-temperature", type=commands.above_zero, metavar="T", help="divide the logits by T in beam search; "
        "above 1, its captions differ more from each other (1)")  # fmt: skip
    add("--rerank", type=commands.above_zero, metavar="W", help="also rank captions by the n-grams that the picture's "
        "features suggest, with weight W, such as 200; needs a beam (--beam) and train --reranker")  # fmt: skip
    add("--mirror", action="store_true", default=None, help="average the word probabilities with those of the mirror "
        "image")  # fmt: skip
    add("--temperature", type=commands.above_zero, metavar="T", help="sample, with the logits divided by T; below 1 "
        "favours likely words")  # fmt: skip
    add("--top-k", type=commands.positive, metavar="K", help="sample from the K most likely words only")
    add("--top-p", type=functools.partial(commands.above_zero, most=1), metavar="P", help="sample from the smallest "
        "set of words with total probability P (nucleus sampling)")  # fmt: skip
    add("--no-repeat", type=commands.positive, dest="no_repeat_ngram", metavar="N", help="never repeat an N-gram")
    add("--seed", type=commands.seed, default=0, help="random seed for sampling (0)")


def read(options, device):
    """The options of eecs598.captioner.decode_pictures given on the command line; an empty dict means greedy.

    device: the model's.
    """
    given = {name: getattr(options, name, None) for name in NAMES if getattr(options, name, None) is not None}
    if given.keys() & set(SAMPLING):
        given["generator"] = torch.Generator(device).manual_seed(options.seed)
    return given
