"""The published notebook's checks of a captioner, for any layers with any names.

The loss must be a known number for parameters, pictures and captions that are filled by a rule. The captions must have
the right shape. As this alone means little, each word must also be the most likely one according to the captioner's own
loss, if the loss is correct.
"""

import contextlib
import math
from functools import cache

import torch

from eecs598.checks.parts import ATTN_CAPTIONER_LOSS, LSTM_CAPTIONER_LOSS, RNN_CAPTIONER_LOSS
from eecs598.checks.running import OutputError, attempt, named
from eecs598.checks.seeds import current_seed, mixed
from eecs598.encoders import ImageEncoder, replace_regnet
from eecs598.features import fed_with_features, without_image_encoder
from eecs598.grad import rel_error

LOSSES = {"rnn": 150.6090393066, "lstm": 146.3162, "attn": 8.0156}  # the digits that the notebook shows
LOSS_LIMIT = 5e-6  # of the rel_error: less than a unit of the last digit of 8.0156
SIZES = {"input_dim": 400, "wordvec_dim": 30, "hidden_dim": 40}
NULL, START, END = 0, 1, 2
WORDS = {"<NULL>": NULL, "<START>": START, "<END>": END, "cat": 3, "dog": 4, "bird": 5}
PICTURES, GRID, MAX_LENGTH = 4, (4, 4), 15
MARGIN = 0.01  # in nats: a word that is less likely by more than this is not the most likely one
WORDS_CHECKED = 6  # words of each caption
SEED = 34  # chosen such that captions differ and some end early, for each cell type


def add_published_loss(table, captioner_class, cell_type):
    """Add a row: the loss of the published cell."""
    loss, want = _published_loss(captioner_class, cell_type), wanted_loss(cell_type)
    whose = "the published notebook's" if current_seed() is None else "this run's"
    if not table.add("the published loss", rel_error(loss, want), LOSS_LIMIT).passed:
        table.hint(f"with {whose} parameters the loss is {loss:.10g}, wanted {want:.10g}")


@torch.no_grad()
def add_published_captions(table, captioner_class, cell_type):
    """Add rows: the shapes of the captions, and whether each word is the most likely one."""
    generator = torch.Generator().manual_seed(mixed(SEED))
    with without_image_encoder(captioner_class, SIZES["input_dim"]):
        model = _build(captioner_class, cell_type, WORDS, -100)
    for parameter in model.parameters():
        parameter.copy_(_draw(parameter.shape, generator))
    features = torch.randn(PICTURES, SIZES["input_dim"], *GRID, generator=generator)
    with fed_with_features(model.eval()):
        captions, _ = sample(model, features, MAX_LENGTH, cell_type == "attn")
        table.add("shapes", 0.0, limit=0)
        _require_words(captions)
        place = None
        with contextlib.suppress(OutputError):  # of its loss, which other checks are about
            place = _find_unlikely(model, features, captions)
    if place and rel_error(_published_loss(captioner_class, cell_type), wanted_loss(cell_type)) < LOSS_LIMIT:
        table.add("the likeliest word", math.inf, limit=0)
        table.hint("word {} of a caption is {}, but by the captioner's own loss {} is likelier: does each step receive "
                   "the previous word and all of the previous state?".format(*place))  # fmt: skip


def _require_words(captions):
    """Raise `OutputError` for ids of no word. What follows <END> isn't read."""
    said = captions[(captions == END).cumsum(1) == 0]
    if len(unknown := said[~torch.isin(said, torch.tensor(list(WORDS.values())))]):
        raise OutputError(f"CaptioningRNN.sample returned the word {unknown[0].item()}, wanted ids of the vocabulary, "
                          f"{min(WORDS.values())} to {max(WORDS.values())}")  # fmt: skip


def _build(captioner_class, cell_type, words, ignore_index):
    """A captioner of the published sizes. Raises `OutputError`."""
    given = SIZES | {"cell_type": cell_type, "ignore_index": ignore_index, "image_encoder_pretrained": False}
    return attempt("CaptioningRNN", captioner_class, dict(words), **given)


@torch.no_grad()
def _published_loss(captioner_class, cell_type):
    """The loss with every parameter, those of its image encoder too, the same ramp. Raises `OutputError`."""
    (start, end), captions = _ends_and_captions()
    whole = getattr(captioner_class, "whole", captioner_class)  # a submission's mirror lacks the encoder otherwise
    with _no_trained_weights():
        model = _build(whole, cell_type, {"<NULL>": NULL, "cat": 2, "dog": 3}, NULL)
    for parameter in model.parameters():
        parameter.copy_(_ramp(start, end, *parameter.shape))
    return loss_of(model, _ramp(-3, 3, 10, 3, 112, 112), captions).item()


@contextlib.contextmanager
def _no_trained_weights():
    """A context in which torchvision's RegNetX-400MF has random weights, as its parameters are replaced in any case.

    A file that asks for trained ones would download them.
    """
    original = replace_regnet(lambda *args, **kwargs: original())
    try:
        yield
    finally:
        replace_regnet(original)


def _ends_and_captions():
    """The ends of the ramp, -1.4 and 1.3 in the notebook, and the captions: in a run of the grader others like them."""
    if current_seed() is None:
        return (-1.4, 1.3), (torch.arange(10 * 13) % 3).view(10, 13)
    generator = torch.Generator().manual_seed(mixed(SEED + 1))
    start, end = (torch.tensor([-1.45, 1.25]) + 0.1 * torch.rand(2, generator=generator)).tolist()
    return (start, end), torch.randint(3, (10, 13), generator=generator)


@torch.no_grad()
def wanted_loss(cell_type):
    """The loss that a captioner has with these parameters: the published one, in a run of the grader its formula's."""
    if current_seed() is None:
        return LOSSES[cell_type]
    formula = {"rnn": RNN_CAPTIONER_LOSS, "lstm": LSTM_CAPTIONER_LOSS, "attn": ATTN_CAPTIONER_LOSS}[cell_type]
    (start, end), captions = _ends_and_captions()
    (C, W, H), V = SIZES.values(), 3
    G = H if cell_type == "rnn" else 4 * H
    shapes = {"W_feature": (H, C), "b_feature": (H,), "W_embed": (V, W), "Wx": (W, G), "Wh": (H, G), "b": (G,),
              "W_out": (V, H), "b_out": (V,)} | ({"Wattn": (H, G)} if cell_type == "attn" else {})  # fmt: skip
    weights = {name: _ramp(start, end, *shape) for name, shape in shapes.items()}
    weights |= {name: weights[name].t() for name in ("W_feature", "W_out")}  # as nn.Linear keeps them
    features = _published_features(start, end)
    return formula.reference(features=features, captions=captions, **weights, specials=(NULL, START, END))[0].item()


@cache
def _published_features(start, end):
    """What the published image encoder makes of the published pictures, its parameters being the same ramp."""
    encoder = ImageEncoder(pretrained=False, verbose=False)
    for parameter in encoder.parameters():
        parameter.copy_(_ramp(start, end, *parameter.shape))
    return encoder(_ramp(-3, 3, 10, 3, 112, 112))


def _ramp(start, end, *shape):
    return torch.linspace(start, end, math.prod(shape)).view(shape)


def _draw(shape, generator):
    """Parameters for which the next word depends strongly on the previous words and the picture."""
    spread = 5 / math.sqrt(max(shape[0], math.prod(shape[1:]))) if len(shape) > 1 else 0.3
    return spread * torch.randn(shape, generator=generator)


def loss_of(model, images, captions):
    """A captioner's loss, a single number. Raises `OutputError`."""
    name = "CaptioningRNN.forward"
    loss = named(name, attempt(name, model, images, captions), ("loss",))["loss"]
    if loss.dim():
        raise OutputError(f"{name} returned a loss of shape {tuple(loss.shape)}, wanted a single number")
    return loss


def sample(model, features, max_length, attends):
    """A captioner's captions, (N, max_length) or fewer words, and its attention weights or None.

    Raises `OutputError`, also for other shapes than these.
    """
    name, (N, _, *grid) = "CaptioningRNN.sample", features.shape
    outputs = ("captions", "attn_weights") if attends else ("captions",)
    sampled = named(name, attempt(name, model.sample, features, max_length=max_length), outputs)
    captions, maps = sampled["captions"], sampled.get("attn_weights")
    if captions.dim() != 2 or len(captions) != N or not 0 < captions.shape[1] <= max_length:
        raise OutputError(f"{name} returned captions of shape {tuple(captions.shape)}, wanted ({N}, {max_length})")
    if attends and (maps.shape[:1] != (N,) or maps.shape[2:] != (*grid,) or maps.shape[1] < captions.shape[1]):
        wanted = f"({N}, {max_length}, {grid[0]}, {grid[1]})"
        raise OutputError(f"{name} returned attention weights of shape {tuple(maps.shape)}, wanted {wanted}")
    if attends and maps.device.type != "cpu":
        raise OutputError(f"{name} returned attention weights on {maps.device}, wanted them on the CPU: .cpu()")
    return captions.long(), maps


def _find_unlikely(model, features, captions):
    """A word that is not the likeliest one at its place: (its number, it, the likeliest), or None."""
    for picture, caption in zip(features, captions.tolist()):
        place = _find_unlikely_word(model, picture, caption)
        if place and caption[0] == START:  # some files put it in front, as the first word
            place = _find_unlikely_word(model, picture, caption[1:])
        if place:
            return place
    return None


def _find_unlikely_word(model, picture, caption):
    """The loss of a caption tells how likely its last word is, whatever the layers are."""
    names, said = list(WORDS), caption[: caption.index(END) + 1] if END in caption else caption
    for t, word in enumerate(said[:WORDS_CHECKED]):
        others = {other for other in WORDS.values() if other != NULL} | {word}
        losses = {other: _loss_of_one(model, picture, [START, *said[:t], other]) for other in others}
        best = min(losses, key=losses.get)
        if losses[word] - losses[best] > MARGIN:
            return t + 1, names[word], names[best]
    return None


def _loss_of_one(model, picture, caption):
    """The loss of one caption; twice in the batch, as some files take no batch of one."""
    return loss_of(model, picture.expand(2, *picture.shape), torch.tensor([caption, caption])).item()
