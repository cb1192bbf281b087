"""The training objective: a captioner's loss, computed fast and with regularization.

A captioner computes its own loss, `model(images, captions)`. The objective computes the same loss from the captioner's
parameters with `eecs598.fast`: captions are sorted by length, padding is skipped, and the features of a picture are
projected once for all of its captions. It adds the regularization of `Options`. On the first batch, both losses and
their gradients are compared.
"""

import dataclasses
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eecs598.by_picture import ByPicture, for_captions
from eecs598.decoding import evaluating, sample_words
from eecs598.encoders import get_encoder
from eecs598.training.options import Options

TOLERANCE = 1e-4  # relative error of the fast loss, and of each gradient, to the plain one
COMPARED = 8  # pictures of the first batch used for the comparison


class ObjectiveError(ValueError):
    """The loss cannot be computed fast, or would differ from the model's own. The message says why, in one line."""


class PartsError(ObjectiveError):
    """A captioner lacks a part that `eecs598.fast` needs. The message says which one."""


class Objective(nn.Module):
    """The loss of a captioner, called as objective(images, captions).

    model: a captioner. options: regularization, only with `fast`. fast: compute with `eecs598.fast` on the model's
    parameters, which must be those of the published cells, in modules of any name; False: call `model(images,
    captions)`. Raises ValueError; ObjectiveError for a model that is not supported.
    """

    def __init__(self, model, options=Options(), fast=True):
        super().__init__()
        self.model, self.options, self.fast, self.compared = model, options, fast, False
        if not fast and options.of_loss():
            raise ObjectiveError(f"{', '.join(options.of_loss())}: not supported by the model's own forward; train "
                                 "with fast=True")  # fmt: skip
        if fast:
            require_fast()
            if options.tie_embeddings:
                tie_embeddings(model)
            find_parts(model)  # fail early

    def forward(self, images, captions, weights=None):
        """The mean loss over the captions.

        images (N, 3, H, W), or any input of the model's encoder; captions (N, T + 1) int64, each <START> words <END>
        <NULL>..., or (N, K, T + 1), K for each picture. weights (N,) or (N, K): a factor for the loss of each caption,
        for captions sampled from the model (`eecs598.training.selfcritical`); then dropout is the only regularization,
        and <NULL>, <START> and <UNK> are banned, as in sampling. Raises ValueError, TypeError; ObjectiveError if the
        loss or a gradient of the first batch differs from the model's own.
        """
        check_captions(self.model, images, captions)
        if not self.fast and weights is not None:
            raise ObjectiveError("weights, for captions sampled from the model, need fast=True")
        if not self.fast:
            return plain_loss(self.model, images, captions)
        parts = find_parts(self.model)  # not cached: the encoder may have been replaced for precomputed features
        if self.training and not self.compared:
            self._compare(parts, images[:COMPARED], captions[:COMPARED])
        return self._fast_loss(parts, images, captions, weights)

    @torch.enable_grad()
    def _compare(self, parts, images, captions):
        """Compute the plain loss both ways. Raises ObjectiveError if it or a gradient differs."""
        encoder = {id(p) for p in parts.encoder.parameters()}
        trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad and id(p) not in encoder}
        with evaluating(self), torch.autocast(captions.device.type, enabled=False):
            losses = self._fast_loss(parts, images, captions), plain_loss(self.model, images, captions)
            fast, plain = ({"loss": loss.detach(), **_gradients(loss, trained)} for loss in losses)
        # A gradient that is 0 but for rounding, as that of attention on a plain picture, has no relative error.
        least = 1e-6 + 1e-5 * math.hypot(*(gradient.norm().item() for gradient in plain.values()))
        for name in plain:
            error = ((plain[name] - fast[name]).norm() / plain[name].norm().clamp_min(least)).item()
            if not error <= TOLERANCE:
                what = "the loss" if name == "loss" else f"the gradient of {name}"
                raise ObjectiveError(f"{what} by the model's own forward and backward differs from the fast one by "
                                     f"{error:.1e}, wanted at most {TOLERANCE:g}: check the model's functions, or "
                                     "train with fast=False")  # fmt: skip
        self.compared = True

    def _fast_loss(self, parts, images, captions, weights=None):
        from eecs598.fast.loss import word_loss

        sampled = weights is not None
        K, captions = captions.shape[1] if captions.dim() == 3 else 1, captions.flatten(0, -2)
        mask = _mask(captions, parts.ignore_index)
        order = mask.sum(1).argsort(descending=True, stable=True)  # longest first, as packing needs
        captions, mask = captions[order], mask[order]
        if K == 1:  # sort the images, which is cheaper than sorting the projected grids
            images = images[order]
        start = self._encode(parts, images)  # once for all captions of a picture
        batch = _Batch(mask, order if K > 1 else None, K)
        h, read = self._states(parts, start, batch, captions, sampled)
        y = batch.packing.pack(captions[:, 1:])
        factors = torch.ones(len(y), device=y.device)
        if sampled:
            factors = batch.packing.pack(weights.flatten()[order].unsqueeze(1).expand_as(mask))
        if parts.ignore_index is not None:
            factors = factors.masked_fill(y == parts.ignore_index, 0)
        smoothing = self.options.label_smoothing if self.training and not sampled else 0.0
        banned = self._banned_words() if sampled else []
        loss = word_loss(read, parts.output.weight, parts.output.bias, y, factors, smoothing, banned) / len(captions)
        return loss if sampled else loss + self._attention_penalties(parts, h, start, batch)

    def _banned_words(self):
        words = (getattr(self.model, name, None) for name in ("null", "start", "unk"))
        return [word for word in words if word is not None]

    def _drop(self, x):
        from eecs598.fast.dropout import dropout

        return dropout(x, self.options.dropout) if self.training else x

    def _encode(self, parts, images):
        """The initial state h0 (N, H), or for attn the grid A (N, H, h, w)."""
        features, (W, b) = parts.encoder(images), parts.feature
        if features.dim() != 4 or features.shape[1] != W.shape[1]:
            raise ObjectiveError(f"the image encoder returns features {tuple(features.shape)}; the affine map of the "
                                 f"features takes (N, {W.shape[1]}, h, w)")  # fmt: skip
        features = features.to(W.dtype)
        if parts.cell_type == "attn":
            return self._drop(F.linear(features.movedim(1, -1), W, b)).movedim(-1, 1)
        return self._drop(F.linear(features.mean(dim=(2, 3)), W, b))

    def _states(self, parts, start, batch, captions, sampled):
        """The hidden states (N, T, H) for captions (N, T + 1), and what their words are predicted from, packed (P, H).

        start: the result of `_encode`, for each picture. sampled: the words were sampled from the model.
        """
        words = captions[:, :-1]
        if self.training and self.options.scheduled_sampling and not sampled:
            # In parallel: one pass over the true words gives the samples, a second one uses them (Duckworth et al.,
            # "Parallel scheduled sampling", 2019).
            with torch.no_grad():
                _, read = self._run_cell(parts, start, batch, words)
                guesses = sample_words(F.linear(read, parts.output.weight, parts.output.bias).float())
            replaced = torch.rand(guesses.shape, device=words.device) < self.options.scheduled_sampling
            mixed = guesses.where(replaced, batch.packing.pack(captions[:, 1:])).unsqueeze(1)
            words = torch.cat([words[:, :1], batch.packing.unpack(mixed).squeeze(2)[:, :-1]], dim=1)
        return self._run_cell(parts, start, batch, words)

    def _run_cell(self, parts, start, batch, words):
        from eecs598.fast import layers

        x = self._drop(parts.word_embedding(words))
        if parts.cell_type == "attn":
            h = layers.run_attention_lstm(x, start, *parts.cell, batch.lengths, batch.order)
        else:
            run = {"rnn": layers.run_rnn, "lstm": layers.run_lstm}[parts.cell_type]
            h = run(x, for_captions(start, batch.order), *parts.cell, batch.lengths)
        read = self._drop(batch.packing.pack(h))
        if parts.deep_output is not None:
            view = parts.deep_output.look(read, batch.by_picture(), *parts.deep_output.project(start))
            read = self._drop(parts.deep_output(read, batch.packing.pack(x), self._drop(view)))
        return h, read

    def _attention_penalties(self, parts, h, start, batch):
        """The weighted attention penalties for states h (N, T, H); start: the result of `_encode`."""
        options = self.options
        used = options.doubly_stochastic or options.attention_entropy
        if not (used and self.training and parts.cell_type == "attn"):
            return 0.0
        log_weights = log_attention(h, for_captions(start, batch.order))
        return (options.doubly_stochastic * doubly_stochastic_penalty(log_weights, batch.mask)
                + options.attention_entropy * attention_entropy(log_weights, batch.mask))  # fmt: skip


def require_fast():
    """Raise ObjectiveError if `eecs598.fast` is missing, as in a student edition."""
    try:
        import eecs598.fast  # noqa: F401
    except ModuleNotFoundError:
        raise ObjectiveError("this edition has no eecs598/fast; with fast=False, a model trains by its own forward "
                             "and backward, without regularization") from None  # fmt: skip


def choose_fast(model, options):
    """Whether `eecs598.fast` supports this captioner, and the options to train it with.

    If not, as for a student's captioner with other layers, regularization is turned off, and a line says so.
    """
    try:
        require_fast()
        find_parts(model)
    except ObjectiveError as error:
        off = dict.fromkeys(options.of_loss(), 0)
        without = f", without {', '.join(off)}" if off else ""
        print(f"training uses the captioner's own forward and backward{without} ({error})")
        return False, dataclasses.replace(options, **off)
    return True, options


def plain_loss(model, images, captions):
    """The model's own loss; captions (N, T + 1) or (N, K, T + 1)."""
    if captions.dim() == 3:
        images, captions = images.repeat_interleave(captions.shape[1], dim=0), captions.flatten(0, 1)
    return model(images, captions)


def tie_embeddings(model):
    """Share the word vectors with the output weights, permanently. Raises ValueError unless W = H, PartsError."""
    parts = find_parts(model)
    wordvec_dim, hidden_dim = parts.word_embedding.W_embed.shape[1], parts.output.in_features
    if wordvec_dim != hidden_dim:
        raise ValueError(f"tie_embeddings needs wordvec_dim equal to hidden_dim, but wordvec_dim is {wordvec_dim} "
                         f"and hidden_dim {hidden_dim}")  # fmt: skip
    parts.output.weight = parts.word_embedding.W_embed


def _gradients(loss, parameters):
    gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(parameters, gradients))


def _mask(captions, ignore_index):
    """(N, T) bool: the steps up to the last one of each caption that counts in the loss."""
    if ignore_index is None:
        return torch.ones_like(captions[:, 1:], dtype=torch.bool)
    counts = captions[:, 1:] != ignore_index
    return counts.flip(1).cummax(1).values.flip(1)


class _Batch:
    """The layout of N captions of T words, sorted longest first, and of their P words without padding.

    mask (N, T): the steps of each caption. order (N,): the numbers of the captions, numbered picture by picture, K to
    each; None if K is 1, and the pictures are sorted too.
    """

    def __init__(self, mask, order, K):
        from eecs598.fast.packing import Packing

        self.mask, self.lengths, self.order, self.K = mask, mask.sum(1), order, K
        self.packing = Packing(*mask.shape, self.lengths)

    def by_picture(self):
        """The packed words as queries to the grid of their picture."""
        N, T = self.mask.shape
        steps = torch.arange(N * T, device=self.mask.device).view(N, T)  # of all captions, picture by picture
        steps = steps if self.order is None else steps[self.order]
        return ByPicture(self.packing.pack(steps), N // self.K, self.K * T)


# ---------------------------------------------------------------------------------------------------------
# Finding a captioner's parameters by shape, since module names may differ
# ---------------------------------------------------------------------------------------------------------


class Parts(NamedTuple):
    """The encoder of a captioner, and the parameters of its decoder by role."""

    encoder: nn.Module
    feature: tuple[Tensor, Tensor]  # (H, C), (H,)
    word_embedding: nn.Module  # parameter W_embed (V, W)
    cell: tuple[Tensor, ...]  # Wx, Wh, for attn Wattn, b
    output: nn.Linear  # from H to the V words
    cell_type: str
    ignore_index: int | None
    deep_output: nn.Module | None  # of `eecs598.deep_output`


def find_parts(model):
    """The `Parts` of a captioner. Raises PartsError, which names the missing part."""
    encoder = get_encoder(model)
    deep_output = getattr(model, "deep_output", None)
    inside = {id(module) for part in (encoder, deep_output or nn.Identity()) for module in part.modules()}
    modules = [module for module in model.modules() if id(module) not in inside]
    cell = _first(modules, _is_cell, "a cell with parameters Wx, Wh and b")
    embedding = _first(modules, lambda m: hasattr(m, "W_embed"), "a word embedding with a parameter W_embed")
    (H, columns), V = cell.Wh.shape, len(embedding.W_embed)
    maps = [module for module in modules if isinstance(module, nn.Linear) and module.bias is not None]
    output = _first(maps[::-1], lambda m: m.weight.shape == (V, H), f"an nn.Linear from {H} to the {V} words")
    maps = [module for module in maps if module is not output]
    C = encoder.out_channels
    feature = _first(maps, lambda m: m.weight.shape == (H, C), f"an nn.Linear from the {C} image features to {H}")
    cell_type = "attn" if hasattr(cell, "Wattn") else "lstm" if columns == 4 * H else "rnn"
    weights = (cell.Wx, cell.Wh, *([cell.Wattn] if cell_type == "attn" else []), cell.b)
    return Parts(encoder, (feature.weight, feature.bias), embedding, weights, output, cell_type,
                 getattr(model, "ignore_index", None), deep_output)  # fmt: skip


def _is_cell(module):
    return all(hasattr(module, name) for name in ("Wx", "Wh", "b"))


def _first(modules, fits, what):
    found = next((module for module in modules if fits(module)), None)
    if found is None:
        raise PartsError(f"fast training needs {what}, which the captioner lacks; train with fast=False")
    return found


# ---------------------------------------------------------------------------------------------------------
# Attention penalties
# ---------------------------------------------------------------------------------------------------------


def log_attention(h, A):
    """The log attention weights (N, T, L) that led to the states h (N, T, H), for a grid A (N, H, h, w)."""
    prev_h = torch.cat([A.mean(dim=(2, 3)).unsqueeze(1), h[:, :-1]], dim=1).to(h.dtype)
    scores = torch.einsum("nth,nhl->ntl", prev_h, A.flatten(2).to(h.dtype)) / math.sqrt(h.shape[2])
    return scores.log_softmax(2, torch.promote_types(h.dtype, torch.float32))


def doubly_stochastic_penalty(log_weights, mask):
    """sum_l (1 - sum_t weights[t, l])^2, averaged over captions (Xu et al., 2015, equation 14).

    log_weights (N, T, L), mask (N, T) bool.
    """
    attended = (log_weights.exp() * mask.unsqueeze(2)).sum(1)  # (N, T, L) -> (N, L)
    return ((1 - attended) ** 2).sum(1).mean()


def attention_entropy(log_weights, mask):
    """The entropy of the attention weights in nats, summed over steps and averaged over captions.

    log_weights (N, T, L), mask (N, T) bool.
    """
    entropy = -(log_weights.exp() * log_weights).sum(2)  # (N, T)
    return (entropy * mask).sum(1).mean()


def check_captions(model, images, captions):
    """Raise ValueError or TypeError unless captions are word ids of a valid shape on the model's device."""
    sized = captions.dim() in (2, 3) and captions.shape[-1] >= 2 and captions.numel() > 0
    if not sized or len(captions) != len(images):
        raise ValueError(f"captions are {tuple(captions.shape)}; for {len(images)} pictures they must be "
                         f"({len(images)}, T + 1), or ({len(images)}, K, T + 1), with K and T at least 1")  # fmt: skip
    if captions.dtype != torch.int64:
        raise TypeError(f"captions are {captions.dtype}; they must be torch.int64 word ids")
    device = next(model.parameters()).device
    if captions.device != device:
        raise ValueError(f"captions are on {captions.device}, but the model is on {device}; move them there with .to")
    W_embed = next((p for name, p in model.named_parameters() if name.endswith("W_embed")), None)
    low, high = (int(edge) for edge in captions.aminmax())
    if W_embed is not None and (low < 0 or high >= len(W_embed)):
        raise ValueError(f"captions hold ids from {low} to {high}; the vocabulary has ids 0 to {len(W_embed) - 1}")
