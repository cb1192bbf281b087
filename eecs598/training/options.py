"""The options of a training run beyond the published recipe. As they stand here, all of them are off."""

import math
from dataclasses import dataclass, fields

PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class Options:
    """What is trained on, how each step is made, and how the run goes.

    Regularization, and what else changes the loss (`eecs598.training.objective`):

    dropout: the probability with which a number is set to 0 in the projected features, the word vectors and the states
    that are scored (Srivastava et al., 2014). label_smoothing: the share of the target's probability that is spread
    over the whole vocabulary (Szegedy et al., "Rethinking the Inception architecture", 2016). tie_embeddings: the word
    vectors are the output's weights too, which takes W = H (Press and Wolf, "Using the output embedding", 2017).
    doubly_stochastic: for attn, the weight of Xu et al.'s equation 14, which asks that each cell of the grid be
    attended to equally over a caption. attention_entropy: for attn, the weight of the entropy of each step's attention
    weights, which asks for few cells at a time (Grandvalet and Bengio, 2005). scheduled_sampling: the probability with
    which the word before is sampled from the model (Bengio et al., "Scheduled sampling", 2015).

    The optimizer (`eecs598.training.solver`):

    weight_decay: AdamW's (Loshchilov and Hutter, "Decoupled weight decay regularization", 2019). clip_norm: the
    gradient's norm at most (Pascanu et al., "On the difficulty of training recurrent neural networks", 2013). warmup:
    iterations in which the learning rate rises from 0. cosine: it falls along a cosine, to a twentieth at the end of
    the last epoch (Loshchilov and Hutter, "SGDR", 2017). averaging: the decay of an exponential moving average of the
    weights, with which the model is validated and ends; smaller at first, so that the random start is soon forgotten
    (Polyak and Juditsky, 1992).

    The run: seed orders the examples. precision of the products: "float32", "bfloat16", or "auto" for the one that
    this device multiplies faster. accumulate: parts in which a batch is computed, for one that does not fit in memory.
    checkpoint_every: iterations from one checkpoint to the next; None: one at the end of each epoch. progress: show a
    progress bar. plot: draw the losses, in a notebook.
    """

    dropout: float = 0.0
    label_smoothing: float = 0.0
    tie_embeddings: bool = False
    doubly_stochastic: float = 0.0
    attention_entropy: float = 0.0
    scheduled_sampling: float = 0.0

    weight_decay: float = 0.0
    clip_norm: float = 0.0
    warmup: int = 0
    cosine: bool = False
    averaging: float = 0.0

    seed: int = 0
    precision: str = "float32"
    accumulate: int = 1
    checkpoint_every: int | None = None
    progress: bool = True
    plot: bool = True

    def __post_init__(self):
        for name in ("dropout", "label_smoothing", "scheduled_sampling", "averaging"):
            if not _is_number(getattr(self, name), below=1):
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be in [0, 1), 0 for none")
        for name in ("doubly_stochastic", "attention_entropy", "weight_decay", "clip_norm", "warmup"):
            if not _is_number(getattr(self, name), below=math.inf):
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be finite and at least 0, 0 for none")
        if type(self.accumulate) is not int or not 1 <= self.accumulate < 2**63:
            raise ValueError(f"accumulate is {self.accumulate!r}; it must be a whole number, at least 1")
        if self.precision not in ("auto", *PRECISIONS):
            raise ValueError(f"precision is {self.precision!r}; it must be auto, {' or '.join(PRECISIONS)}")

    def of_loss(self):
        """The options in use that change the loss, by name."""
        return self._in_use(LOSS)

    def of_optimizer(self):
        """The options in use that change the optimizer's steps, by name."""
        return self._in_use(OPTIMIZER)

    def _in_use(self, names):
        return {name: getattr(self, name) for name in names if getattr(self, name)}


def _is_number(value, below):
    return isinstance(value, (int, float)) and 0 <= value < below


NAMES = tuple(field.name for field in fields(Options))
LOSS, OPTIMIZER = NAMES[: NAMES.index("weight_decay")], NAMES[NAMES.index("weight_decay") : NAMES.index("seed")]
