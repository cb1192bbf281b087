"""Scores of captions: BLEU, CIDEr-D and ROUGE-L (`scores`, `cider`), on the words that `ptb` finds."""

from eecs598.metrics.scores import SCORES, Evaluation, evaluate_captions, format_scores, rank_captions, score_captions

__all__ = ["SCORES", "Evaluation", "evaluate_captions", "format_scores", "rank_captions", "score_captions"]
