"""Attributes: how likely each of the most frequent words is in a picture's captions, for the captioner to read.

A captioner learns what the features of a picture mean by writing captions word by word. Which words they contain is
an easier question, and ridge regression answers it in closed form, from the features x of n training pictures:

    y(x) = W^T x      W = (X^T X + ridge I)^-1 X^T Y

Row i of Y has, for each of the A words, the share of picture i's captions with the word, standardized. The features are
the mean and the maximum of each channel over the grids of frozen encoders, which may be other encoders than the
captioner's own. The captioner gets the A predictions as further channels of its grid.

For a training picture, whose captions it was fitted to, the regression knows the answer better than it will for a new
picture, and a captioner trained with such predictions would trust them too much. So each training picture has the
prediction of a regression that was fitted to all pictures but this one, which has a closed form, too (Hastie et al.,
equation 7.64):

    y_i - (y_i - W^T x_i) / (1 - h_i)      h_i = x_i^T (X^T X + ridge I)^-1 x_i

Sources: Fang et al., "From captions to visual concepts and back", 2015, section 3 (detectors of words); Wu et al.,
"What value do explicit high level concepts have in vision to language problems?", 2016 (attributes as input of an
LSTM); Hastie et al., "The elements of statistical learning", 2009, sections 3.4.1 and 7.10.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from eecs598 import encoders, features
from eecs598.encoders import normalize_described
from eecs598.progress import late_bar

RIDGE = 5.0


class Regression(NamedTuple):
    """The result of `fit`.

    The predictions of new pictures are normalize_described(described, center) @ weight. Those of the training pictures,
    each by a regression that was not fitted to it, have standard deviation 1.
    """

    words: Tensor  # (A,): ids, most frequent first
    center: Tensor  # (M, C)
    weight: Tensor  # (M * C, A)
    held_out: Tensor  # (n, A)
    explained: float  # R^2 of held_out: the share of the variance of Y


def fit(described, captions, special, count):
    """The regression from pictures to words.

    described (n, M, C): features of the pictures, see `eecs598.encoders.join`. captions (n, K, T) int64: their
    captions. special: the ids of words that are no attributes, such as <START>. count: of the words. Raises ValueError.
    """
    if len(described) != len(captions) or len(captions) < 2:
        raise ValueError(f"attributes need at least 2 pictures, with captions of each; seen {len(described)} pictures "
                         f"and captions of {len(captions)}")  # fmt: skip
    words, shares = _word_shares(captions, special, count)
    Y = (shares - shares.mean(0)) / shares.std(0).clamp(min=1e-6)
    center = described.mean(0)
    X = normalize_described(described, center)
    weight, leverage = _ridge_regression(X, Y)
    held_out = Y - (Y - X @ weight) / (1 - leverage).unsqueeze(1)
    explained = 1 - ((held_out - Y).square().sum() / Y.square().sum().clamp(min=1e-6)).item()
    scale = held_out.std().clamp(min=1e-6)
    return Regression(words, center, weight / scale, held_out / scale, explained)


def _ridge_regression(X, Y):
    """W (D, A) from X (n, D) and Y (n, A), and h (n,), see above."""
    parts = X.split(512)
    with late_bar(2 * len(X), "attributes") as bar:
        gram = RIDGE * torch.eye(X.shape[1])
        for part in parts:
            gram.addmm_(part.t(), part)
            bar.update(len(part))
        factor, leverage = torch.linalg.cholesky(gram), []
        for part in parts:  # gram is factor @ factor^T, so h is the squared norm of factor^-1 x
            leverage.append(torch.linalg.solve_triangular(factor, part.t(), upper=False).square().sum(0))
            bar.update(len(part))
    return torch.cholesky_solve(X.t() @ Y, factor), torch.cat(leverage)


def _word_shares(captions, special, count):
    """The `count` words that occur in the most captions, or all if there are fewer: (A,), and their shares (n, A).

    A share is that of a picture's captions with the word.
    """
    n, K, _ = captions.shape
    size = max(int(captions.max()), *special) + 1
    pairs = (torch.arange(n * K).unsqueeze(1) * size + captions.flatten(0, 1)).unique()  # each word once a caption
    pictures, words = pairs // size // K, pairs % size
    frequency = words.bincount(minlength=size)
    frequency[list(special)] = 0
    frequent = frequency.argsort(descending=True, stable=True)[: min(count, int((frequency > 0).sum()))]
    column = torch.full((size,), -1).index_copy(0, frequent, torch.arange(len(frequent)))[words]
    shares = torch.zeros(n, len(frequent))
    known = column >= 0
    shares.index_put_((pictures[known], column[known]), torch.tensor(1 / K), accumulate=True)
    return frequent, shares


def add_attributes(encoder, others, images, captions, special, count, encode=features.encode_images):
    """`encoder` with attributes, a WithAttributes, and its Regression, fitted to training pictures (n, 3, H, W).

    others: the encoders from whose features the attributes are predicted. encode: as in
    `eecs598.features.describe_pictures`. The other arguments are as in `fit`. Raises ValueError.
    """
    found = fit(features.describe_pictures(others, images, encode), captions, special, count)
    return encoders.WithAttributes(encoder, others, found.center, found.weight), found
