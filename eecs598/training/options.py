"""Training options beyond the published recipe, all off by default."""

import math
from dataclasses import dataclass, fields

PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class Options:
    """Regularization, optimizer and run.

    Regularization (`eecs598.training.objective`):

    dropout: dropout probability for the projected features, the word vectors and the states before the output layer
    (Srivastava et al., 2014). label_smoothing: the part of the target distribution that is uniform over the vocabulary
    (Szegedy et al., "Rethinking the Inception architecture", 2016). tie_embeddings: share the word vectors with the
    output weights, which needs W = H (Press and Wolf, "Using the output embedding", 2017). doubly_stochastic: for attn,
    the weight of the penalty of Xu et al., equation 14, which encourages equal attention to all grid cells over a
    caption. attention_entropy: for attn, the weight of the entropy of the attention weights, which encourages attention
    to few cells at a time (Grandvalet and Bengio, 2005). scheduled_sampling: the probability that an input word is
    sampled from the model (Bengio et al., "Scheduled sampling", 2015).

    Optimizer (`eecs598.training.solver`):

    weight_decay: decoupled weight decay, as in AdamW (Loshchilov and Hutter, 2019). clip_norm: gradient clipping by
    norm (Pascanu et al., "On the difficulty of training recurrent neural networks", 2013). warmup: iterations in which
    the learning rate rises linearly. cosine: a cosine schedule down to a twentieth of the learning rate at the end of
    the last epoch (Loshchilov and Hutter, "SGDR", 2017). averaging: decay of an exponential moving average of the
    weights, which is used for validation and as the final model; smaller at first, so that the initialization is
    soon forgotten (Polyak and Juditsky, 1992). encoder_rate: factor of the learning rate for the image encoder's
    weights, where they are trained.

    Run:

    seed: for the order of examples. precision of matrix products: "float32", "bfloat16", or "auto" for the faster one
    on this device. accumulate: number of parts for gradient accumulation, for a batch that does not fit in memory.
    checkpoint_every: iterations between checkpoints; None: one at the end of each epoch. progress: show a progress bar.
    plot: plot the losses, in a notebook.
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
    encoder_rate: float = 1.0

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
        if not (_is_number(self.encoder_rate, below=math.inf) and self.encoder_rate > 0):
            raise ValueError(f"encoder_rate is {self.encoder_rate!r}; it must be positive and finite, 1 for the same "
                             "rate as the decoder's")  # fmt: skip
        for name in ("accumulate", *(["checkpoint_every"] if self.checkpoint_every is not None else [])):
            if type(getattr(self, name)) is not int or not 1 <= getattr(self, name) < 2**63:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be a whole number, at least 1")
        if type(self.seed) is not int or not 0 <= self.seed < 2**63:
            raise ValueError(f"seed is {self.seed!r}; it must be a whole number, at least 0")
        if self.precision not in ("auto", *PRECISIONS):
            raise ValueError(f"precision is {self.precision!r}; it must be auto, {' or '.join(PRECISIONS)}")

    def of_loss(self):
        """The loss options that differ from their defaults: {name: value}."""
        return self._in_use(LOSS)

    def of_optimizer(self):
        """The optimizer options that differ from their defaults: {name: value}."""
        return self._in_use(OPTIMIZER)

    def _in_use(self, names):
        return {name: getattr(self, name) for name in names if getattr(self, name) != getattr(Options, name)}


def _is_number(value, below):
    return isinstance(value, (int, float)) and 0 <= value < below


NAMES = tuple(field.name for field in fields(Options))
LOSS, OPTIMIZER = NAMES[: NAMES.index("weight_decay")], NAMES[NAMES.index("weight_decay") : NAMES.index("seed")]
