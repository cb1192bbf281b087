"""Scores of captions against what people said of the same pictures: BLEU, ROUGE-L, CIDEr.

BLEU and ROUGE-L come from the field's own scorer, pycocoevalcap (the code of COCO's caption challenge); CIDEr-D from
`eecs598.metrics.cider`, which gives that scorer's numbers and can score a caption by itself. All work on the words that
the field's tokenizer finds; `eecs598.metrics.ptb` finds the same ones without Java. A caption is scored as a model
generated it, against all the captions of its picture; what a model would have said after a person's words ("teacher
forcing") is no caption.

    BLEU-1..4   runs of 1 to n words that a reference has too (precision), over all pictures together; too short
                captions lose. Papineni et al., "BLEU: a method for automatic evaluation of machine translation", 2002
    ROUGE-L     the longest common subsequence with a reference, mean over pictures. Lin, "ROUGE: a package for
                automatic evaluation of summaries", 2004
    CIDEr-D     likeness to all the references in runs of 1 to 4 words, rare ones counting more, times 10, mean over
                pictures. Vedantam et al., "CIDEr: consensus-based image description evaluation", 2015. This is what
                papers and COCO's code print as "CIDEr"
    CIDEr       the same paper's measure without the "-D": repeating a word, and another length, cost nothing. It is
                mostly higher than CIDEr-D, and not to be compared with what papers print

How rare a run of words is, CIDEr takes from the references it is given: in how many pictures' references it occurs.
So scores of other pictures, or of a part of them, are not comparable; with few pictures they say little, and with a
single picture CIDEr is 0. All are fractions, 1 at best, but CIDEr, 10 at best; the field prints the others times 100.
"""

import math
from typing import NamedTuple

from eecs598.metrics.cider import CiderD
from eecs598.metrics.ptb import tokenize

SCORES = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "CIDEr-D", "CIDEr", "ROUGE-L")


class Evaluation(NamedTuple):
    """Captions' scores, all together and one by one."""

    scores: dict  # {"BLEU-1": a float, ...} over all pictures
    pictures: dict  # {"BLEU-1": [a float for each picture], ...}; for CIDEr and ROUGE-L, the score is their mean


def score_captions(captions, references):
    """The scores of captions, one of each picture, against all its references: {"BLEU-1": ..., ..., "ROUGE-L": ...}.

    captions: n strings. references: for each picture a list of strings, as people wrote them. See the head of this
    module for what the scores mean. Raises ValueError, and ImportError without pycocoevalcap.
    """
    return evaluate_captions(captions, references).scores


def evaluate_captions(captions, references):
    """`score_captions` with each picture's own scores beside: an Evaluation. Raises ValueError, ImportError."""
    bleu_scorer, rouge_class = import_scorers()
    _check(captions, references)
    words = [tokenize(caption) for caption in captions]
    reference_words = [[tokenize(text) for text in texts] for texts in references]
    if not any(any(texts) for texts in reference_words):
        raise ValueError("no reference has a word; give captions as people write them")
    bleu, cider, rouge = bleu_scorer(n=4), CiderD(reference_words), []
    for caption, texts in zip(words, reference_words):
        caption, texts = " ".join(caption), [" ".join(text) for text in texts]
        bleu += caption, texts
        rouge.append(float(rouge_class().calc_score([caption], texts)))
    bleus, pictures_bleus = bleu.compute_score(option="closest")
    pictures = {f"BLEU-{n}": scores for n, scores in enumerate(pictures_bleus, 1)}
    pictures["CIDEr-D"] = [cider.score(i, caption) for i, caption in enumerate(words)]
    pictures["CIDEr"] = [cider.plain_score(i, caption) for i, caption in enumerate(words)]
    pictures["ROUGE-L"] = rouge
    scores = {name: math.fsum(each) / len(each) for name, each in pictures.items()}
    scores |= {f"BLEU-{n}": score for n, score in enumerate(bleus, 1)}  # of all pictures' counts, not a mean
    return Evaluation(scores, pictures)


def import_scorers():
    """pycocoevalcap's BleuScorer and Rouge; neither needs Java. Raises ImportError in one line."""
    try:
        from pycocoevalcap.bleu.bleu_scorer import BleuScorer
        from pycocoevalcap.rouge.rouge import Rouge
    except ImportError as error:
        raise ImportError(f"captions cannot be scored ({error}); `pip install pycocoevalcap` mends that") from None
    return BleuScorer, Rouge


def _check(captions, references):
    if len(captions) != len(references):
        raise ValueError(f"there are {len(captions)} captions but references of {len(references)} pictures; "
                         "give one caption and a list of references for each picture")
    if len(captions) == 0:
        raise ValueError("there are no captions to score; give one of each picture")
    for i, (caption, texts) in enumerate(zip(captions, references)):
        if not isinstance(caption, str):
            raise ValueError(f"captions[{i}] is {caption!r:.60}; it must be a string")
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"references[{i}] is {texts!r:.60}; it must be a list of strings")
        if len(texts) == 0:
            raise ValueError(f"picture {i} has no references; leave it out, or give at least one")


def rank_captions(evaluation):
    """The pictures' numbers by their CIDEr-D, best first; equal ones in the order of the pictures."""
    scores = evaluation.pictures["CIDEr-D"]
    return sorted(range(len(scores)), key=lambda i: -scores[i])


def format_scores(scores):
    """A table of {name of a model: its scores}, a line a model, as text. All but CIDEr's are times 100."""
    width = max(len("model"), *(len(name) for name in scores))
    lines = ["  ".join([f"{'model':<{width}}", *(f"{name:>7}" for name in SCORES)])]
    for name, values in scores.items():
        cells = (f"{values[score]:7.3f}" if "CIDEr" in score else f"{100 * values[score]:7.1f}" for score in SCORES)
        lines.append("  ".join([f"{name:<{width}}", *cells]))
    return "\n".join(lines)
