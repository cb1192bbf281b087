"""A captioner with a deep output layer, beside the lesson's: better captions, and slower training.

The lesson's attention captioner predicts a word from the state h_t alone. Here a word is predicted from the state, the
previous word and a second look at the picture. Its query is h_t; that of the first look, h_{t-1}, does not depend on
the previous word yet. `--output-heads` of `python helpers.py train` turns it on. Autograd computes the gradients of
this layer; the attention LSTM below it is still the one written by hand.
"""

import functools
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eecs598.by_picture import ByPicture


class DeepOutput(nn.Module):
    """r_t = tanh(W_h h_t + W_x x_t + W_v view_t + b), from which the next word is predicted.

    view_t is multi-head attention to the grid: for each head, a softmax over the cells of q_t · k_l / sqrt(H / heads),
    where q_t is an affine map of h_t, and the keys k_l and values are affine maps of the cells. Raises ValueError
    unless the number of heads divides H.

    Sources: Pascanu et al., "How to construct deep recurrent neural networks", 2014 (deep output); Xu et al., "Show,
    attend and tell", 2015, equation 7; Lu et al., "Knowing when to look", 2017, equations 6 to 8 (h_t as the query);
    Vaswani et al., "Attention is all you need", 2017, section 3.2 (heads).
    """

    def __init__(self, wordvec_dim, hidden_dim, heads):
        super().__init__()
        if heads < 1 or hidden_dim % heads:
            raise ValueError(f"output_heads is {heads}; it must be positive and divide hidden_dim, {hidden_dim}")
        self.heads = heads
        self.query = nn.Linear(hidden_dim, hidden_dim)
        self.keys_and_values = nn.Linear(hidden_dim, 2 * hidden_dim)
        self.state_projection = nn.Linear(hidden_dim, hidden_dim)
        self.word_projection = nn.Linear(wordvec_dim, hidden_dim, bias=False)
        self.view_projection = nn.Linear(hidden_dim, hidden_dim, bias=False)

    def project(self, A):
        """The keys and values of a grid A (N, H, h, w): two tensors (N, heads, L, H / heads)."""
        both = self.keys_and_values(A.flatten(2).transpose(1, 2))  # (N, L, 2H)
        return both.unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)

    def look(self, h, grids, keys, values):
        """The views (R, H) for states h (R, H). grids: a `ByPicture`, which state belongs to which of the N grids."""
        query = grids.spread(self.query(h)).unflatten(2, (self.heads, -1)).transpose(1, 2)  # (N, heads, K, H / heads)
        view = F.scaled_dot_product_attention(query, keys, values).transpose(1, 2).flatten(2)
        return grids.gather(view)

    def forward(self, h, x, view):
        """r (R, H) from states h (R, H), word vectors x (R, W) and views (R, H), in the precision of h."""
        r = torch.tanh(self.state_projection(h) + self.word_projection(x) + self.view_projection(view))
        return r.to(h.dtype)


class DeepState(NamedTuple):
    """The state between two words, for R captions of N pictures. The captions of a picture share its grid."""

    h: Tensor  # (R, H)
    c: Tensor  # (R, H)
    picture: Tensor  # (R,) int64: which picture a caption is of
    A: Tensor  # (N, H, h, w)
    keys: Tensor  # (N, heads, L, H / heads), for the second look
    values: Tensor

    of_pictures = ("A", "keys", "values")  # see `eecs598.decoding`


class _DeepCaptioner:
    """What `with_deep_output` adds to a captioner of cell type attn: the output layer is a `DeepOutput`."""

    def __init__(self, *args, wordvec_dim, hidden_dim, cell_type, output_heads, **kwargs):
        if cell_type != "attn":
            raise ValueError(f"cell_type is {cell_type!r}; output heads need attn, which has a grid to look at")
        super().__init__(*args, wordvec_dim=wordvec_dim, hidden_dim=hidden_dim, cell_type=cell_type, **kwargs)
        missing = [name for name in ("word_embedding", "cell", "output_projection") if not hasattr(self, name)]
        lesson = super()
        missing += [name for name in ("encode", "begin", "step") if not hasattr(lesson, name)]
        if missing:
            raise ValueError(f"output heads need a captioner with {', '.join(missing)}, as this project's; train "
                             "with output_heads 0")  # fmt: skip
        self.deep_output = DeepOutput(wordvec_dim, hidden_dim, output_heads)

    def forward(self, images, captions):
        """The captioning loss. images (N, 3, height, width) or features; captions (N, T + 1) int64."""
        inputs, targets = captions[:, :-1], captions[:, 1:]
        x, A = self.word_embedding(inputs), self.encode(images)
        h, x = self.cell(x, A).flatten(0, 1), x.flatten(0, 1)  # (N * T, ...)
        steps = ByPicture(torch.arange(len(h), device=h.device), *inputs.shape)
        view = self.deep_output.look(h, steps, *self.deep_output.project(A))
        scores = self.output_projection(self.deep_output(h, x, view))
        ignored = -100 if self.ignore_index is None else self.ignore_index
        losses = F.cross_entropy(scores, targets.flatten(), ignore_index=ignored, reduction="sum")
        return losses / len(captions)

    def begin(self, images):
        """The `DeepState` before the first word of each picture's caption."""
        h, c, A = super().begin(images)
        return DeepState(h, c, torch.arange(len(h), device=h.device), A, *self.deep_output.project(A))

    def step(self, words, state):
        """The scores of the next word (R, V) after words (R,) int64, the next state, and the weights (R, h, w)."""
        x, cells = self.word_embedding(words), state.A.flatten(2)
        grids = ByPicture.of(state.picture, len(cells))
        dots = torch.einsum("nkh,nhl->nkl", grids.spread(state.h), cells) / math.sqrt(cells.shape[1])
        weights = dots.softmax(2)
        attn = grids.gather(torch.einsum("nkl,nhl->nkh", weights, cells))
        h, c = self.cell.step_forward(x, state.h, state.c, attn)
        view = self.deep_output.look(h, grids, state.keys, state.values)
        scores = self.output_projection(self.deep_output(h, x, view))
        return scores, state._replace(h=h, c=c), grids.gather(weights).unflatten(1, state.A.shape[2:])


@functools.cache
def with_deep_output(captioner_class):
    """The class of captioners with a deep output layer. captioner_class: the lesson's CaptioningRNN.

    Its constructor also takes output_heads, their number. It raises ValueError for another cell type than attn, and for
    a class without the lesson's parts.
    """
    return type("DeepCaptioner", (_DeepCaptioner, captioner_class), {})
