"""Scores of captions: BLEU, CIDEr-D, ROUGE-L and METEOR (`scores`, `bleu`, `cider`, `meteor`), on words by `ptb`."""

from eecs598.metrics.meteor import MeteorError
from eecs598.metrics.scores import (
    SCORES,
    Evaluation,
    add_meteor,
    evaluate_captions,
    format_scores,
    import_scorers,
    rank_captions,
    score_captions,
)

__all__ = [
    "SCORES", "Evaluation", "MeteorError", "add_meteor", "evaluate_captions", "format_scores", "import_scorers",
    "rank_captions", "score_captions",
]  # fmt: skip
