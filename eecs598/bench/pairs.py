"""What is compared: for each group of rows, pairs of two ways of doing the same.

"The plain captioner" is the definition step by step, recorded by autograd (`eecs598.checks.formulas`), in a captioner
of `nn.Embedding`, that loop, `nn.Linear` and `F.cross_entropy`.
"""

import argparse
import copy
import math
import sys
from functools import partial
from importlib import util
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from eecs598 import ROOT, decoding, encoders
from eecs598.bench.measuring import Pair
from eecs598.captioner import make_captioner, takes_features
from eecs598.checks import formulas
from eecs598.coco.captions import SPECIAL_TOKENS
from eecs598.features import Features, encode_images
from eecs598.training import solver
from eecs598.training.objective import Objective, PartsError

MODULE = ROOT / "rnn_lstm_captioning.py"


def module_file(text):
    """An argparse type: a rnn_lstm_captioning.py, as an absolute path."""
    path = Path(text).resolve()
    if not path.is_file() or path.suffix != ".py":
        raise argparse.ArgumentTypeError(f"{text} is not a .py file; --module takes a rnn_lstm_captioning.py")
    return path


class Sizes(NamedTuple):
    """N captions of T steps, word vectors of W, H units, V words, C channels of features on a grid x grid."""

    N: int = 256
    T: int = 16
    W: int = 256
    H: int = 512
    V: int = 2539
    C: int = 112
    grid: int = 7

    def __str__(self):
        return f"N={self.N} T={self.T} W={self.W} H={self.H}"


def load_module(path):
    """Import a rnn_lstm_captioning.py, ours or a student's, from its path."""
    encoders.import_torchvision()  # a student's file may import it, and its operators may not match torch
    spec = util.spec_from_file_location("rnn_lstm_captioning", path)
    module = util.module_from_spec(spec)
    sys.modules[spec.name] = module  # before it runs, as its classes look up their module
    spec.loader.exec_module(module)
    return module


def _step(forward, parameters, dout=None):
    """Forward and backward, with gradients cleared first."""

    def step():
        for parameter in parameters:
            parameter.grad = None
        forward().backward(dout)

    return step


class PlainCaptioner(nn.Module):
    """A straightforward captioner in PyTorch: padding is computed, and autograd records every step."""

    def __init__(self, V, C, W, H, cell_type, ignore_index=0):
        super().__init__()
        self.cell_type, self.ignore_index = cell_type, ignore_index
        self.feature_projection = nn.Linear(C, H)
        self.word_embedding = nn.Embedding(V, W)
        self.output_projection = nn.Linear(H, V)
        rows, columns = {"rnn": ((W, H), H), "lstm": ((W, H), 4 * H), "attn": ((W, H, H), 4 * H)}[cell_type]
        self.weights = nn.ParameterList([torch.randn(size, columns) / size**0.5 for size in rows])
        self.bias = nn.Parameter(torch.zeros(columns))

    def forward(self, features, captions):
        x, target = self.word_embedding(captions[:, :-1]), captions[:, 1:]
        features = features if self.cell_type == "attn" else features.mean(dim=(2, 3), keepdim=True)
        start = self.feature_projection(features.movedim(1, -1)).movedim(-1, 1)
        start = start if self.cell_type == "attn" else start.flatten(1)
        loop = {"rnn": formulas.rnn, "lstm": formulas.lstm_from_h0, "attn": formulas.attention_lstm}[self.cell_type]
        h = loop(x, start, *self.weights, self.bias)[0]
        scores = self.output_projection(h).flatten(0, 1)
        loss = F.cross_entropy(scores, target.flatten(), ignore_index=self.ignore_index, reduction="sum")
        return loss / len(captions)


def layer_pairs(module, sizes, where):
    """The layers of `eecs598.fast`, at full length with all gradients; and their matrix products alone."""
    return _layer_pairs(fast_layers(), sizes, where, floors=True)


def fast_layers():
    from eecs598 import fast  # here, since student editions lack it

    return fast


def _products(sizes, columns, where, cells=0):
    """The matrix products of a layer, forward and backward, as it does them: a lower bound for its time.

    columns: of its weights. cells: of the grid, for attention, whose states are [h, attn].
    """
    from eecs598.fast.arithmetic import add_product_, product
    from eecs598.fast.packing import BLOCK

    N, T, W, H = sizes[:4]
    inner = 2 * H if cells else H
    shapes = (N * T, W), (N * T, inner), (N * T, columns), (W, columns), (inner, columns), (N, H, cells), (N, T, cells)
    x, z, a, Wx, Wz, A, weights = (torch.randn(shape, device=where) / 100 for shape in shapes)
    values, queries, inputs = A.transpose(1, 2), z[:, :H].view(N, T, H), torch.cat([x, z], dim=1)
    dW, is_rnn = a.new_zeros(W + inner, columns), columns == H
    block = N * T if is_rnn else max(1, BLOCK // (N * columns)) * N  # the RNN has all steps in one

    def products():
        for x_b in x.split(block):
            product(x_b, Wx)
        for z_t, a_t in zip(z.split(N), a.split(N)):
            add_product_(torch.empty_like(a_t), z_t, Wz)
        for a_t in a.split(N):
            product(a_t, Wz.t())
        for inputs_b, a_b in zip(inputs.split(block), a.split(block)):
            product(a_b, Wx.t())
            if not is_rnn:
                add_product_(dW, inputs_b.t(), a_b)
        if is_rnn:
            product(x.t(), a), product(z.t(), a)
        if cells:
            attend()

    def attend():
        for t in range(T):  # forward, and back to both factors
            for _ in range(2):
                torch.bmm(queries[:, t : t + 1], A), torch.bmm(weights[:, t : t + 1], values)
        torch.bmm(queries.transpose(1, 2), weights).baddbmm_(queries.transpose(1, 2), weights)

    return products


def plain_pairs(module, sizes, where):
    """The plain code of `module`: its own layers, and a training step with its own functions."""
    for pair in _layer_pairs(module, sizes, where):
        yield pair._replace(name=f"plain {pair.name}")
    for pair in _training_pairs(module, sizes, where, training_step):
        yield pair._replace(name=f"plain {pair.name}")


def _layer_pairs(layers, sizes, where, floors=False):
    """RNN and LSTM against torch.nn's, the attention LSTM against the plain loop. layers: a module with the three.

    floors: with a row for the matrix products of each layer alone.
    """
    N, T, W, H = sizes[:4]
    x = torch.randn(N, T, W, device=where, requires_grad=True)
    h0 = torch.randn(N, H, device=where, requires_grad=True)
    dh = torch.randn(N, T, H, device=where)
    for name, library, start in (
        ("LSTM", nn.LSTM, lambda h0: (h0[None], torch.zeros_like(h0)[None])), ("RNN", nn.RNN, lambda h0: h0[None]),
    ):  # fmt: skip
        ours = getattr(layers, name)(W, H).to(where)
        other = FromState(library(W, H, batch_first=True), start).to(where)
        both = zip(launch_modes(ours, x, h0).items(), launch_modes(other, x, h0).values())
        for (how, layer), library_layer in both:
            steps = (_step(partial(each, x, h0), (x, h0, *each.parameters()), dh) for each in (layer, library_layer))
            pair = Pair(name + how, str(sizes), f"torch.nn.{name}{how}", *steps)
            yield pair
            if floors and not how:
                yield _floor(pair, _products(sizes, len(ours.b), where))
    ours = layers.AttentionLSTM(W, H).to(where)
    weights = [getattr(ours, name) for name in ("Wx", "Wh", "Wattn", "b")]
    for grid in (4, 7):
        A = torch.randn(N, H, grid, grid, device=where, requires_grad=True)
        try:
            ours(x, A)
        except Exception as error:  # a student's layer may have 4 x 4 hard-coded
            print(f"attention LSTM: left out, the layer takes no {grid}x{grid} ({type(error).__name__})")
            continue
        pair = Pair(
            "attention LSTM", f"{sizes} {grid}x{grid}", "plain loop, autograd",
            _step(partial(ours, x, A), (x, A, *weights), dh),
            _step(lambda A=A: formulas.attention_lstm(x, A, *weights)[0], (x, A, *weights), dh),
        )  # fmt: skip
        yield pair
        if floors:
            yield _floor(pair, _products(sizes, 4 * H, where, grid * grid))


def _floor(pair, products):
    """The row of a layer's matrix products alone, after that of the layer."""
    return pair._replace(name=f"{pair.name}, its products alone", ours=products)


class FromState(nn.Module):
    """A layer of torch.nn with the signature of ours, (x, h0) -> h."""

    def __init__(self, layer, start):
        super().__init__()
        self.layer, self.start = layer, start

    def forward(self, x, h0):
        return self.layer(x, self.start(h0))[0]


def launch_modes(layer, *inputs):
    """{suffix of the name: layer}: the layer as it is, and on CUDA also recorded as a CUDA graph.

    Launching a kernel from Python takes some microseconds, which is longer than many kernels run. A recorded graph is
    launched as a whole, so it is compared with a recorded graph. It has fixed shapes, so padding is computed.
    """
    modes = {"": layer}
    if inputs[0].is_cuda:
        samples = tuple(tensor.detach().clone().requires_grad_() for tensor in inputs)
        copied = copy.deepcopy(layer).to(inputs[0].device)  # .to makes cuDNN's weights contiguous again
        modes[", one graph"] = torch.cuda.make_graphed_callables(copied, samples)
    return modes


def captioner_and_data(module, sizes, cell_type, padding, where="cpu", encoder=None, output_heads=0):
    """Our captioner, the plain one, and a batch (features, captions) with this fraction of padding.

    Ours takes features, or pictures if an encoder is given. output_heads: see `eecs598.deep_output`.
    """
    N, T, W, H, V, C, grid = sizes
    words = {"vocab": {"token_to_idx": {word: i for i, word in enumerate((*SPECIAL_TOKENS[:3], *range(3, V)))}}}
    encoder = encoder or Features(torch.float32, C)
    ours = make_captioner(module.CaptioningRNN, words, cell_type, encoder, H, W, output_heads)
    plain = PlainCaptioner(V, C, W, H, cell_type)
    generator = torch.Generator().manual_seed(0)
    captions = torch.randint(3, V, (N, T + 1), generator=generator)
    captions[torch.arange(T + 1) > draw_lengths(N, T, padding, generator)[:, None]] = 0
    features = torch.randn(N, C, grid, grid, generator=generator)
    return ours.to(where), plain.to(where), (features.to(where), captions.to(where))


def draw_lengths(N, T, padding, generator=None):
    """N lengths from 3 to T, roughly normally distributed, such that padding is this fraction of the N * T steps."""
    spread = T / 6 * torch.randn(N, generator=generator)
    for centre in torch.arange(3, 2 * T, 0.01):
        lengths = (centre + spread).round().clamp(3, T)
        if lengths.mean() >= (1 - padding) * T:
            break
    return lengths.long()


def training_pairs(module, sizes, where):
    """A training step of the decoder with `eecs598.fast`, including Adam, against the plain captioner."""
    return _training_pairs(module, sizes, where, fast_training_step)


def _training_pairs(module, sizes, where, step_of):
    for cell_type, grid, C, V, padding in (
        ("attn", 7, 112, 2539, 0.42), ("attn", 4, 400, 864, 0.42), ("lstm", 7, 112, 2539, 0.42),
        ("rnn", 7, 112, 2539, 0.42), ("attn", 7, 112, 2539, 0.28),
    ):  # fmt: skip
        sizes = sizes._replace(V=V, C=C, grid=grid)
        if not takes_features(module.CaptioningRNN, cell_type, (C, grid, grid)):
            print(f"training step, {cell_type}: left out, the captioner takes no {C} channels on {grid}x{grid}")
            continue
        ours, plain, batch = captioner_and_data(module, sizes, cell_type, padding, where)
        try:
            step = step_of(ours, batch)
        except PartsError as error:
            print(f"training step, {cell_type}: left out ({error})")
            continue
        yield Pair(
            f"training step, {cell_type}", f"V={V} {grid}x{grid} {padding:.0%} padding", "plain captioner",
            step, training_step(plain, batch),
        )  # fmt: skip


def fast_training_step(model, batch, precision="float32"):
    """`training_step` of a captioner with `eecs598.fast`."""
    return training_step(Objective(model), batch, precision)


def training_step(loss_of, batch, precision="float32"):
    """A function without arguments that makes one step of `solver.train`. loss_of: a captioner, or its objective."""
    optimizer, where = solver.make_optimizer(loss_of.parameters(), 1e-3), batch[0].device

    def step():
        with solver.autocast(where, precision):
            loss = loss_of(*batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def precision_pairs(module, sizes, where):
    """The LSTM in bfloat16 against torch.nn's; and a training step in bfloat16 against float32."""
    lstm = next(_layer_pairs(fast_layers(), sizes, where))
    theirs = _in_bfloat16(lstm.other, where)
    try:
        theirs()
    except RuntimeError as error:  # oneDNN's LSTM needs AVX-512
        reason = str(error).partition(".")[0]
        print(f"note: torch.nn.LSTM does not run in bfloat16 here ({reason}): its row is left out", file=sys.stderr)
    else:
        yield lstm._replace(
            name="LSTM, bfloat16", against="torch.nn.LSTM, bfloat16", ours=_in_bfloat16(lstm.ours, where), other=theirs,
        )  # fmt: skip
    ours, _, batch = captioner_and_data(module, sizes, "attn", 0.42, where)
    best = solver.best_precision(where)
    yield Pair(
        "bfloat16", f"V={sizes.V} 7x7; this machine trains in {best}", "the same in float32",
        fast_training_step(copy.deepcopy(ours), batch, "bfloat16"), fast_training_step(ours, batch),
    )  # fmt: skip


def _in_bfloat16(step, where):
    def run():
        with solver.autocast(where, "bfloat16"):
            step()

    return run


def beam_pairs(module, sizes, where, pictures=256):
    """Beam search for a batch of pictures at once against one picture at a time."""
    for grid, C in ((4, 400), (7, 112)):
        ours, _, (features, _) = captioner_and_data(
            module, sizes._replace(N=pictures, grid=grid, C=C), "attn", 0.42, where)
        ours.eval()
        search = partial(decoding.decode, ours, max_length=sizes.T, beam_size=3)
        yield Pair(
            "beam 3", f"{pictures} pictures {grid}x{grid} V={sizes.V} H={sizes.H}", "one picture at a time",
            partial(search, features),
            lambda search=search, features=features: [search(one) for one in features.split(1)],
        )  # fmt: skip


def shared_pairs(module, sizes, where):
    """Several captions of each picture together, against the same captions with a copy of the features for each.

    With the deep output layer, in a training step and in sampling, where about one word in twelve ends a caption.
    """
    captions = 5  # of a picture
    sizes = sizes._replace(N=captions * max(1, sizes.N // 8), C=1280, grid=9)
    ours, _, (features, texts) = captioner_and_data(module, sizes, "attn", 0.28, where, output_heads=8)
    ours.output_projection.bias.data[ours.end] = math.log(sizes.V / 11)
    features = features[: sizes.N // captions]
    copied, size = features.repeat_interleave(captions, dim=0), f"{len(features)} pictures 9x9 V={sizes.V}"
    together = features, texts.unflatten(0, (len(features), captions))
    yield Pair(
        f"training step, {captions} captions a picture", size, "the same, a grid for each caption",
        fast_training_step(copy.deepcopy(ours), together), fast_training_step(ours, (copied, texts)),
    )  # fmt: skip
    sample = partial(decoding.sample_captions, ours, max_length=sizes.T)
    yield Pair(
        f"{captions} sampled captions a picture", size, "the same, a grid for each caption",
        partial(sample, features, num_captions=captions), partial(sample, copied),
    )  # fmt: skip


def epoch_pairs(module, sizes, where, pictures=32):
    """A training step on cached features against the published one, end to end through the encoder."""
    sizes = sizes._replace(N=256, grid=4, C=400)
    ours, _, batch = captioner_and_data(module, sizes, "attn", 0.42, where)
    regnet = encoders.ImageEncoder(pretrained=False, verbose=False)
    published = captioner_and_data(module, sizes, "attn", 0.42, where, regnet)[0]
    photos = torch.randint(0, 256, (pictures, 3, 112, 112), dtype=torch.uint8, device=where)
    steps = [fast_training_step(published, (photos, captions)) for captions in batch[1].split(pictures)]
    yield Pair(
        "epoch, cached features", f"{sizes.N} pictures 112x112", "end to end, RegNet",
        fast_training_step(ours, batch), lambda: [step() for step in steps],
    )  # fmt: skip


def feature_pairs(module, sizes, where, pictures=128):
    """Features at 224 x 224, with folded normalization and the faster precision, against the unmodified network."""
    photos = torch.randint(0, 256, (pictures, 3, 224, 224), dtype=torch.uint8)
    encoder = encoders.choose_encoder(photos[:16], verbose=False)
    plain = copy.deepcopy(encoder).to(where)

    @torch.inference_mode()
    def network():
        return torch.cat([plain(part.to(where)).half().cpu() for part in photos.split(64)])

    yield Pair(
        "image features", f"{pictures} pictures 224x224", f"{type(encoder).__name__}, float32",
        partial(encode_images, encoder, photos, device=where, progress=False), network,
    )  # fmt: skip


def arithmetic_pairs(module, sizes, where):
    """`eecs598.fast.arithmetic` for T steps of the LSTM and of its output layer, against PyTorch's product and tanh."""
    from eecs598.fast import arithmetic

    N, T, W, H, V = sizes[:5]
    h, inputs, a, da, dscores = (torch.randn(N, size, device=where) for size in (H, W + H, 4 * H, 4 * H, V))
    Wh, W_out, dW = (torch.randn(*shape, device=where) for shape in ((H, 4 * H), (V, H), (W + H, 4 * H)))
    for name, left, right in (
        ("product, to h", da, Wh.t()), ("product, to words", h, W_out.t()), ("product, from words", dscores, W_out),
    ):  # fmt: skip
        yield Pair(
            name, f"{tuple(left.shape)} @ {tuple(right.shape)}", "torch.mm",
            _repeat(partial(arithmetic.product, left, right), T), _repeat(partial(torch.mm, left, right), T),
        )  # fmt: skip
    for name, out, left, right in (
        ("added product, of h", a, h, Wh), ("added product, to dW", dW, inputs.t(), da),
    ):  # fmt: skip
        yield Pair(
            name, f"{tuple(left.shape)} @ {tuple(right.shape)}", "Tensor.addmm_",
            _repeat(partial(arithmetic.add_product_, out, left, right), T),
            _repeat(partial(out.addmm_, left, right), T),
        )  # fmt: skip
    x, out = torch.randn(N, H, device=where), torch.empty(N, H, device=where)
    yield Pair(
        "tanh", f"({N}, {H})", "torch.tanh",
        _repeat(lambda: arithmetic.tanh(x, out=out), T), _repeat(lambda: torch.tanh(x, out=out), T),
    )  # fmt: skip


def _repeat(function, times):
    def repeated():
        for _ in range(times):
            function()

    return repeated


def growth_pairs(module, sizes, where):
    """The LSTM against torch.nn's as H grows, and as T grows."""
    for name, values in (("H", (64, 128, 256, 512)), ("T", (4, 8, 16, 32))):
        for value in values:
            pair = next(layer_pairs(module, sizes._replace(**{name: value}), where))
            yield pair._replace(name=f"LSTM, {name}={value}")


PAIRS = {
    "plain": plain_pairs, "layers": layer_pairs, "training": training_pairs, "precision": precision_pairs,
    "beam": beam_pairs, "shared": shared_pairs, "epoch": epoch_pairs, "features": feature_pairs, "growth": growth_pairs,
    "arithmetic": arithmetic_pairs,
}  # fmt: skip
SLOW = ("beam", "epoch", "features")  # these take seconds, and the ratios are far from 1: a few rounds are enough
