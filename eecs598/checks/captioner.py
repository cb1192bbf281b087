"""The checks of a captioner, with any names of its layers."""

import math
from functools import cache

import torch
from torch import nn
from torch.func import functional_call

from eecs598 import encoders
from eecs598.checks import published
from eecs598.checks.comparing import compare, compare_gradients, guard
from eecs598.checks.formulas import SPECIALS, end_captions
from eecs598.checks.kinds import register
from eecs598.checks.levels import BEYOND, PUBLISHED, current_level
from eecs598.checks.running import PARAMETERS, OutputError, attempt
from eecs598.coco.captions import SPECIAL_TOKENS
from eecs598.features import fed_with_features, without_image_encoder
from eecs598.grad import CheckTable

ROLES = {  # weight -> its role, and its bias
    "W_feature": ("the affine map of the image features", "b_feature"),
    "W_out": ("the affine map to the vocabulary", "b_out"),
}


@cache
def _vocabulary(size, specials):
    names = dict(zip(specials, SPECIAL_TOKENS))
    return {names.get(word, f"word{word}"): word for word in range(size)}


def _build_captioner(captioner_class, cell_type, inputs, specials):
    """A captioner of these sizes. Raises `OutputError`."""
    (C, H), (V, W), null = inputs["W_feature"].shape, inputs["W_embed"].shape, specials[0]
    given = {"input_dim": C, "wordvec_dim": W, "hidden_dim": H, "cell_type": cell_type, "ignore_index": null}
    with without_image_encoder(captioner_class, C):
        words = dict(_vocabulary(V, specials))
        return attempt("CaptioningRNN", captioner_class, words, **given, image_encoder_pretrained=False)


def _weights_by_name(model, inputs):
    """The inputs that are weights, with the names and shapes that they have in a student's captioner.

    Both layouts of a matrix are accepted, and so is a 1 x 1 convolution. Raises `OutputError` if one is missing.
    """
    try:
        encoder = {id(parameter) for parameter in encoders.get_encoder(model).parameters()}
    except (ValueError, AttributeError) as error:
        raise OutputError(str(error)) from None
    owned = {name: p for name, p in model.named_parameters() if id(p) not in encoder}
    placed = {}
    for name, value in inputs.items():
        if name in ROLES:
            placed |= _affine_map(owned, name, value, inputs[ROLES[name][1]])
        elif name in PARAMETERS:
            fitting = {key: value for key, p in owned.items() if _is_named(key, name) and p.shape == value.shape}
            if not fitting:
                raise _lacking(f"{name} {tuple(value.shape)}", owned)
            placed |= fitting
    return placed


def _affine_map(owned, name, value, bias):
    """The parameters for this matrix and its bias, with their values."""
    fitting = {key: _fit(value, p) for key, p in owned.items() if _is_matrix(key, p, value)}
    biases = {_sibling(key, "bias"): bias for key in fitting}
    biases = {key: bias for key, bias in biases.items() if key in owned and owned[key].shape == bias.shape}
    if not fitting:
        raise _lacking(f"that is {ROLES[name][0]} {tuple(value.shape)}", owned)
    if not biases:
        raise _lacking(f"that is a bias of {ROLES[name][0]}", owned)
    return fitting | biases


def _lacking(what, owned):
    listed = ", ".join(f"{name} {tuple(p.shape)}" for name, p in owned.items()) or "none"
    return OutputError(f"CaptioningRNN has no parameter {what}; its parameters: {listed}")


def _is_matrix(key, parameter, value):
    shape = tuple(parameter.flatten(1).shape) if parameter.dim() in (2, 4) else ()
    return shape in (tuple(value.shape), tuple(value.t().shape)) and key.rpartition(".")[2] not in PARAMETERS


def _fit(value, parameter):
    """A matrix in the layout of a parameter: as it is, transposed as in nn.Linear, or as a convolution."""
    flat = parameter.flatten(1).shape
    return (value if flat == value.shape else value.t()).reshape(parameter.shape)


def _is_named(key, name):
    """Whether a parameter has this name. The weight of nn.Embedding is accepted as W_embed: it has the same layout."""
    return key.rpartition(".")[2] == name or (name == "W_embed" and key.rpartition(".")[2] == "weight")


def _sibling(key, leaf):
    parent, _, own = key.rpartition(".")
    return f"{parent}.{leaf}" if own == "weight" else key.replace("W", "b").replace("weight", leaf)


def _captioner_run(captioner_class, cell_type, method):
    """Run a captioner in float32 on features instead of images (`fed_with_features`)."""
    build = cache(lambda sizes, specials: _build_captioner(captioner_class, cell_type, dict(build.inputs), specials))

    def run(inputs, incoming, options):
        build.inputs, specials = inputs, options.get("specials", SPECIALS)
        model = build(tuple(value.shape for key, value in inputs.items() if "_" in key), specials)  # the weights' sizes
        weights = {name: value.float() for name, value in _weights_by_name(model, inputs).items()}
        with fed_with_features(model):
            return method(model, weights, inputs, options, specials)

    return run


def _captioner_loss(model, weights, inputs, options, specials):
    def with_weights(*given):
        return functional_call(model, weights, given)

    return {"loss": published.loss_of(with_weights, inputs["features"].float(), inputs["captions"]).double()}


@torch.no_grad()
def _captioner_sample(model, weights, inputs, options, specials):
    """The captions up to <END>. A student's captioner may stop early, or continue arbitrarily after <END>."""
    owned = dict(model.named_parameters())
    for name, value in weights.items():
        owned[name].copy_(value)
    length, attends = options.get("max_length", 15), "Wattn" in inputs
    captions, maps = published.sample(model.eval(), inputs["features"].float(), length, attends)
    shown = maps[:, : captions.shape[1]].double() if attends else None
    missing, pad = length - captions.shape[1], nn.functional.pad
    ended, shown = end_captions(captions, shown, specials)
    values = {"captions": pad(ended, (0, missing), value=specials[0]), "goes on": (captions != ended).any()}
    return values | {"attn_weights": pad(shown, (0, 0, 0, 0, 0, missing))} if attends else values


def _add_padding(table, formula, run):
    """Add a row: whether only <NULL> follows <END>, which the published assignment does not require."""
    case = formula.cases[0]
    goes_on = run(*formula.draw(case), case.options)["goes on"]
    if not table.add("only <NULL> after <END>", math.inf if goes_on else 0.0, limit=0).passed:
        table.hint("sample() continues after <END>: write <NULL> from there on, and stop when every caption has ended")


def add_captioner_checks(cell_type, loss, sample):
    """Add the checks of a captioner: of the loss with its gradients, and of its captions."""

    def check_loss(captioner_class):
        if current_level() == PUBLISHED:
            return check_published(published.add_published_loss, captioner_class)
        table = CheckTable(f"CaptioningRNN's loss, cell_type {cell_type!r}, against {loss.against}")
        run = _captioner_run(captioner_class, cell_type, _captioner_loss)
        compare_gradients("CaptioningRNN", loss)(table, run, compare(table, loss, run, loss.values))
        return table.raise_on_miss()

    def check_sample(captioner_class):
        if current_level() == PUBLISHED:
            return check_published(published.add_published_captions, captioner_class)
        table = CheckTable(f"CaptioningRNN.sample, cell_type {cell_type!r}, against {sample.against}")
        run = _captioner_run(captioner_class, cell_type, _captioner_sample)
        compare(table, sample, run, sample.values)
        if current_level() == BEYOND:
            guard(table, _add_padding, table, sample, run)
        return table.raise_on_miss()

    def check_published(add, captioner_class):
        table = CheckTable(f"CaptioningRNN, cell_type {cell_type!r}, as the published notebook asks")
        guard(table, add, table, captioner_class, cell_type)
        return table.raise_on_miss()

    about = f"the captioner with cell_type {cell_type!r} against PyTorch's layers: "
    register(f"{cell_type}_captioner_loss", ("CaptioningRNN",), check_loss, f"{about}loss, gradients")
    register(f"{cell_type}_captioner_sample", ("CaptioningRNN",), check_sample, f"{about}captions, attention")
