"""Scores of captions against human reference captions: BLEU, CIDEr, ROUGE-L, METEOR.

BLEU and ROUGE-L come from the field's own scorer, pycocoevalcap (the code of COCO's caption challenge). CIDEr-D is
computed by `eecs598.metrics.cider`, which gives the same numbers and can also score a single caption. The captions are
tokenized by `eecs598.metrics.ptb`, a Python version of the field's tokenizer. A caption is scored as the model
generated it, against all reference captions of its picture; words predicted by teacher forcing are not a caption.

    BLEU-1..4   n-gram precision up to n, over the whole corpus, with a brevity penalty. Papineni et al., "BLEU: a
                method for automatic evaluation of machine translation", 2002
    ROUGE-L     F-measure of the longest common subsequence with a reference, mean over pictures. Lin, "ROUGE: a
                package for automatic evaluation of summaries", 2004
    CIDEr-D     TF-IDF weighted n-gram similarity to all references, n = 1 to 4, times 10, mean over pictures. Vedantam
                et al., "CIDEr: consensus-based image description evaluation", 2015. Papers and COCO's code call this
                one "CIDEr"
    CIDEr       the measure of the same paper without the "-D": neither repeated words nor a different length are
                penalized. It is mostly higher than CIDEr-D and must not be compared with published figures
    METEOR      alignment of words, stems, synonyms and paraphrases; see `eecs598.metrics.meteor`. Needs Java, so it is
                computed only by `add_meteor`

The IDF weights of CIDEr come from the references given. Scores on other pictures, or on a subset of them, are therefore
not comparable; with few pictures they mean little, and with a single picture CIDEr is 0. The best possible score is 10
for CIDEr and 1 for all others, which are usually published times 100.
"""

import math
from typing import NamedTuple

from eecs598.metrics.cider import CiderD
from eecs598.metrics.meteor import score_meteor
from eecs598.metrics.ptb import tokenize

SCORES = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "CIDEr-D", "CIDEr", "ROUGE-L")


class Evaluation(NamedTuple):
    """Scores of a set of captions, and of each caption."""

    scores: dict  # {"BLEU-1": a float, ...} over all pictures
    pictures: dict  # {"BLEU-1": [a float for each picture], ...}; CIDEr and ROUGE-L over all pictures are their mean


def score_captions(captions, references):
    """The scores of captions, one for each picture, against all its references: {"BLEU-1": ..., ..., "ROUGE-L": ...}.

    captions: n strings. references: for each picture, a list of strings, as people wrote them. The module's docstring
    explains the scores. Raises ValueError, and ImportError without pycocoevalcap.
    """
    return evaluate_captions(captions, references).scores


def evaluate_captions(captions, references):
    """The scores of `score_captions` and those of each picture: an Evaluation. Raises ValueError, ImportError."""
    bleu_scorer, rouge_class = import_scorers()
    _check(captions, references)
    words = [tokenize(caption) for caption in captions]
    reference_words = [[tokenize(text) for text in texts] for texts in references]
    if not any(any(texts) for texts in reference_words):
        raise ValueError("no reference contains a word; give captions as people write them")
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
    scores |= {f"BLEU-{n}": score for n, score in enumerate(bleus, 1)}  # over the whole corpus, not a mean
    return Evaluation(scores, pictures)


def add_meteor(evaluation, captions, references):
    """The Evaluation of these captions with METEOR added. Raises MeteorError where it cannot be computed."""
    words = [tokenize(caption) for caption in captions]
    total, pictures = score_meteor(words, [[tokenize(text) for text in texts] for texts in references])
    return Evaluation(evaluation.scores | {"METEOR": total}, evaluation.pictures | {"METEOR": pictures})


def import_scorers():
    """pycocoevalcap's BleuScorer and Rouge, neither of which needs Java. Raises ImportError with a one-line message."""
    try:
        from pycocoevalcap.bleu.bleu_scorer import BleuScorer
        from pycocoevalcap.rouge.rouge import Rouge
    except ImportError as error:
        raise ImportError(f"captions cannot be scored ({error}); try `pip install pycocoevalcap`") from None
    return BleuScorer, Rouge


def _check(captions, references):
    if len(captions) != len(references):
        raise ValueError(f"{len(captions)} captions but references for {len(references)} pictures; "
                         "give one caption and a list of references for each picture")
    if len(captions) == 0:
        raise ValueError("no captions to score; give one for each picture")
    for i, (caption, texts) in enumerate(zip(captions, references)):
        if not isinstance(caption, str):
            raise ValueError(f"captions[{i}] is {caption!r:.60}; it must be a string")
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"references[{i}] is {texts!r:.60}; it must be a list of strings")
        if len(texts) == 0:
            raise ValueError(f"picture {i} has no references; leave it out, or give at least one")


def rank_captions(evaluation):
    """The indices of the pictures, sorted by CIDEr-D, best first; ties keep the order of the pictures."""
    scores = evaluation.pictures["CIDEr-D"]
    return sorted(range(len(scores)), key=lambda i: -scores[i])


def format_scores(scores):
    """A table as text, a row for each model. scores: {name of a model: its scores}. All but CIDEr are times 100."""
    width = max(map(len, ("model", *scores)))
    columns = [*SCORES, *(["METEOR"] if any("METEOR" in values for values in scores.values()) else [])]
    lines = ["  ".join([f"{'model':<{width}}", *(f"{column:>7}" for column in columns)])]
    for name, values in scores.items():
        cells = (_format_score(column, values.get(column)) for column in columns)
        lines.append("  ".join([f"{name:<{width}}", *cells]))
    return "\n".join(lines)


def _format_score(column, value):
    if value is None:
        return f"{'-':>7}"
    return f"{value:7.3f}" if "CIDEr" in column else f"{100 * value:7.1f}"
