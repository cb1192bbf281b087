"""The embedded data set: pictures drawn and captioned by a program, in the data file's format.

    python -m eecs598.scenes FILE [--train N] [--val N] [--seed S] [--image-size P]

A scene is a dict of facts: one or two kinds of thing with their counts, colours, sizes and boxes, the
relation between them, the background. It is drawn, a grammar writes five captions that are true of it, and
`judge_caption` reads any caption back and says which of its statements hold. Some (colour, noun) pairs and
(noun, relation, noun) triples never occur in training, so that the val scenes ask for new combinations.

`draw.py` draws, `compose.py` composes a scene, `caption.py` writes its captions, `judge.py` judges captions and
attention, `dataset.py` makes the data file's dict, `__main__.py` is the command.
"""

from eecs598.scenes.dataset import make_scenes
from eecs598.scenes.judge import ATTENTION_ROWS, judge_caption, score_attention, score_captions

__all__ = ["ATTENTION_ROWS", "judge_caption", "make_scenes", "score_attention", "score_captions"]
