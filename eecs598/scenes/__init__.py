"""The embedded data set: pictures that are drawn and captioned by a program, as a data file.

    python -m eecs598.scenes FILE [--train N] [--val N] [--seed S] [--image-size P]

A scene is a dict of facts: one or two kinds of objects with their counts, colours, sizes and boxes, the relation
between them, and the background. It is drawn, a grammar generates five true captions, and `judge_caption` parses any
caption and decides which of its statements are true. Some (colour, noun) pairs and (noun, relation, noun) triples are
reserved for the validation scenes, which test generalization to new combinations.

`compose.py` composes a scene, `draw.py` draws it, `caption.py` generates its captions, `judge.py` judges captions and
attention maps, `dataset.py` makes the data file's dict, `__main__.py` is the command.
"""

from eecs598.scenes.dataset import make_scenes
from eecs598.scenes.judge import ATTENTION_ROWS, judge_caption, score_attention, score_captions

__all__ = ["ATTENTION_ROWS", "judge_caption", "make_scenes", "score_attention", "score_captions"]
