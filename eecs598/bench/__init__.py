"""How fast is the hand-written code? Ours and the other side by side, in turns, on this machine.

    python -m eecs598.bench [--rows NAME...] [--rounds 15] [--module FILE] [--json FILE] [--png FILE]

Every row times two ways of doing the same: they run in turns, so that a machine that slows down slows both, and the
figure is the median of the ratios of neighbours, ours to the other, with the quartiles beside it. Below 1 ours is
the faster. "Plain" is the definition step by step, recorded by autograd (`formulas`), in a captioner of
`nn.Embedding`, that loop, `nn.Linear` and `F.cross_entropy`.
"""

import contextlib
import copy
import json
import multiprocessing
import platform
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib import util
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from eecs598 import decoding, encoders
from eecs598.checks import formulas
from eecs598.commands import Parser, device, positive
from eecs598.fast import arithmetic
from eecs598.files import write_whole
from eecs598.training import solver
from eecs598.vis import plot_growth, plot_ratios

MODULE = Path(__file__).resolve().parents[2] / "rnn_lstm_captioning.py"


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


class Pair(NamedTuple):
    """Two ways of doing the same, each a function of no arguments, and in words what is compared."""

    name: str
    size: str
    against: str
    ours: Callable[[], object]
    other: Callable[[], object]


class Row(NamedTuple):
    """A measured pair: medians in milliseconds (or MB), the median ratio ours / other and its quartiles."""

    name: str
    size: str
    against: str
    ours: float
    other: float
    ratio: float
    low: float
    high: float
    unit: str = "ms"


# ---------------------------------------------------------------------------------------------------------
# Measuring
# ---------------------------------------------------------------------------------------------------------


def compare(pair, rounds=15, where="cpu"):
    """Run both sides of a `Pair` in turns, after one round that does not count. Returns a `Row`."""
    times = [(seconds(pair.other, where), seconds(pair.ours, where)) for _ in range(rounds + 1)][1:]
    others, ours = zip(*times)
    ratios = [mine / theirs for theirs, mine in times]
    low, _, high = statistics.quantiles(ratios, n=4) if rounds > 1 else ratios * 3
    medians = (1e3 * statistics.median(side) for side in (ours, others))
    return Row(pair.name, pair.size, pair.against, *medians, statistics.median(ratios), low, high)


def seconds(function, where):
    began = time.perf_counter()
    function()
    if torch.device(where).type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def _step(forward, parameters, dout=None):
    """Forward and backward, with gradients that begin anew."""

    def step():
        for parameter in parameters:
            parameter.grad = None
        forward().backward(dout)

    return step


# ---------------------------------------------------------------------------------------------------------
# What is compared
# ---------------------------------------------------------------------------------------------------------


class PlainCaptioner(nn.Module):
    """The captioner as one writes it first: padding is computed, autograd records every step."""

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
    """RNN and LSTM against torch.nn's, the attention LSTM against the plain loop; full length, every gradient."""
    N, T, W, H = sizes[:4]
    x = torch.randn(N, T, W, device=where, requires_grad=True)
    h0, c0 = torch.randn(N, H, device=where, requires_grad=True), torch.zeros(1, N, H, device=where)
    dh = torch.randn(N, T, H, device=where)
    for name, library, start in (("LSTM", nn.LSTM, lambda: (h0[None], c0)), ("RNN", nn.RNN, lambda: h0[None])):
        ours = getattr(module, name)(W, H).to(where)
        other = library(W, H, batch_first=True).to(where)
        theirs = _step(lambda other=other, start=start: other(x, start())[0], (x, h0, *other.parameters()), dh)
        for how, layer in ways_to_run(ours, x, h0).items():
            step = _step(partial(layer, x, h0), (x, h0, *layer.parameters()), dh)
            yield Pair(name + how, str(sizes), f"torch.nn.{name}", step, theirs)
    ours = module.AttentionLSTM(W, H).to(where)
    weights = [getattr(ours, name) for name in ("Wx", "Wh", "Wattn", "b")]
    for grid in (4, 7):
        A = torch.randn(N, H, grid, grid, device=where, requires_grad=True)
        yield Pair(
            "attention LSTM", f"{sizes} {grid}x{grid}", "plain loop, autograd",
            _step(partial(ours, x, A), (x, A, *weights), dh),
            _step(lambda A=A: formulas.attention_lstm(x, A, *weights)[0], (x, A, *weights), dh),
        )  # fmt: skip


def ways_to_run(layer, *inputs):
    """{what to call it: the layer to call}: as it is, and on CUDA also with all its launches recorded as one graph.

    Python hands a GPU its kernels one by one, each some microseconds, more than many of them run; a recorded graph
    is handed over whole. It is for one shape of input, so padding is computed.
    """
    ways = {"": layer}
    if inputs[0].is_cuda:
        samples = tuple(tensor.detach().clone().requires_grad_() for tensor in inputs)
        ways[", one graph"] = torch.cuda.make_graphed_callables(copy.deepcopy(layer), samples)
    return ways


def captioner_and_data(module, sizes, cell_type, padding, where="cpu", encoder=None):
    """Our captioner, the plain one, and a batch (features, captions) with that share of padding.

    Ours takes the features themselves, or pictures if it is given an encoder.
    """
    N, T, W, H, V, C, grid = sizes
    words = {word: i for i, word in enumerate(("<NULL>", "<START>", "<END>", *range(3, V)))}
    ours = module.CaptioningRNN(words, C, W, H, cell_type, image_encoder_pretrained=False, ignore_index=0)
    encoders.set_encoder(ours, encoder or encoders.Features(torch.float32))
    plain = PlainCaptioner(V, C, W, H, cell_type)
    generator = torch.Generator().manual_seed(0)
    captions = torch.randint(3, V, (N, T + 1), generator=generator)
    captions[torch.arange(T + 1) > draw_lengths(N, T, padding, generator)[:, None]] = 0
    features = torch.randn(N, C, grid, grid, generator=generator)
    return ours.to(where), plain.to(where), (features.to(where), captions.to(where))


def draw_lengths(N, T, padding, generator=None):
    """N lengths from 3 to T, bell-shaped as people's captions are, whose padding is that share of the N * T steps."""
    spread = T / 6 * torch.randn(N, generator=generator)
    for centre in torch.arange(3, 2 * T, 0.01):
        lengths = (centre + spread).round().clamp(3, T)
        if lengths.mean() >= (1 - padding) * T:
            break
    return lengths.long()


def training_pairs(module, sizes, where):
    """A training step of the decoder, Adam included, against the plain captioner."""
    for cell_type, grid, C, V, padding in (
        ("attn", 7, 112, 2539, 0.42), ("attn", 4, 400, 864, 0.42), ("lstm", 7, 112, 2539, 0.42),
        ("rnn", 7, 112, 2539, 0.42), ("attn", 7, 112, 2539, 0.28),
    ):  # fmt: skip
        sizes = sizes._replace(V=V, C=C, grid=grid)
        ours, plain, batch = captioner_and_data(module, sizes, cell_type, padding, where)
        yield Pair(
            f"training step, {cell_type}", f"V={V} {grid}x{grid} {padding:.0%} padding", "plain captioner",
            training_step(ours, batch), training_step(plain, batch),
        )  # fmt: skip


def training_step(model, batch, precision="float32"):
    """A function of no arguments: one step of `solver.train`."""
    optimizer, where = solver.make_optimizer(model.parameters(), 1e-3), batch[0].device

    def step():
        with solver.autocast(where, precision):
            loss = model(*batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def precision_pairs(module, sizes, where):
    """The same training step, products in bfloat16 and in float32."""
    ours, _, batch = captioner_and_data(module, sizes, "attn", 0.42, where)
    best = solver.best_precision(where)
    yield Pair(
        "bfloat16", f"V={sizes.V} 7x7; this machine trains in {best}", "the same in float32",
        training_step(copy.deepcopy(ours), batch, "bfloat16"), training_step(ours, batch),
    )  # fmt: skip


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


def epoch_pairs(module, sizes, where, pictures=32):
    """A training step on cached features against the published one, end to end through the encoder, a picture each."""
    sizes = sizes._replace(N=256, grid=4, C=400)
    ours, _, batch = captioner_and_data(module, sizes, "attn", 0.42, where)
    regnet = encoders.ImageEncoder(pretrained=False, verbose=False)
    published = captioner_and_data(module, sizes, "attn", 0.42, where, regnet)[0]
    photos = torch.randint(0, 256, (pictures, 3, 112, 112), dtype=torch.uint8, device=where)
    steps = [training_step(published, (photos, captions)) for captions in batch[1].split(pictures)]
    yield Pair(
        "epoch, cached features", f"{sizes.N} pictures 112x112", "end to end, RegNet",
        training_step(ours, batch), lambda: [step() for step in steps],
    )  # fmt: skip


def feature_pairs(module, sizes, where, pictures=128):
    """Features of pictures at 224 x 224: normalization folded in, this device's fast precision; against the network."""
    photos = torch.randint(0, 256, (pictures, 3, 224, 224), dtype=torch.uint8)
    encoder = encoders.choose_encoder(photos[:16], verbose=False)
    plain = copy.deepcopy(encoder).to(where)

    @torch.inference_mode()
    def network():
        return torch.cat([plain(part.to(where)).half().cpu() for part in photos.split(64)])

    yield Pair(
        "image features", f"{pictures} pictures 224x224", f"{type(encoder).__name__}, float32",
        partial(encoders.encode_images, encoder, photos, device=where, progress=False), network,
    )  # fmt: skip


def arithmetic_pairs(module, sizes, where):
    """`arithmetic`'s product and tanh at the sizes of T steps of the LSTM, against PyTorch's."""
    N, T, W, H, V = sizes[:5]
    for name, (rows, inner, columns) in (
        ("product, forward", (N, W + H, 4 * H)), ("product, backward", (N, 4 * H, W + H)),
        ("product, to words", (N, H, V)),
    ):  # fmt: skip
        a, b = torch.randn(rows, inner, device=where), torch.randn(columns, inner, device=where).t()
        b = b if name.endswith("words") else b.contiguous()  # the vocabulary's weight is (V, H)
        yield Pair(
            name, f"({rows}, {inner}) @ ({inner}, {columns})", "torch.mm",
            _repeat(partial(arithmetic.product, a, b), T), _repeat(partial(torch.mm, a, b), T),
        )  # fmt: skip
    x, out = torch.randn(N, H, device=where), torch.empty(N, H, device=where)
    yield Pair(
        "tanh", f"({N}, {H})", "torch.tanh",
        _repeat(lambda: arithmetic.tanh_(out.copy_(x)), T), _repeat(lambda: out.copy_(x).tanh_(), T),
    )  # fmt: skip


def _repeat(function, times):
    def repeated():
        for _ in range(times):
            function()

    return repeated


def growth_pairs(module, sizes, where, widths=(64, 128, 256, 512), lengths=(4, 8, 16, 32)):
    """The LSTM against torch.nn's as H grows, and as T grows."""
    for name, values in (("H", widths), ("T", lengths)):
        for value in values:
            pair = next(layer_pairs(module, sizes._replace(**{name: value}), where))
            yield pair._replace(name=f"LSTM, {name}={value}")


PAIRS = {
    "layers": layer_pairs, "training": training_pairs, "precision": precision_pairs, "beam": beam_pairs,
    "epoch": epoch_pairs, "features": feature_pairs, "growth": growth_pairs, "arithmetic": arithmetic_pairs,
}  # fmt: skip
SLOW = ("beam", "epoch", "features")  # seconds a round, and far from 1: few rounds do


# ---------------------------------------------------------------------------------------------------------
# Memory
# ---------------------------------------------------------------------------------------------------------


def memory_rows(module, sizes, where):
    """The peak resident memory of a few training steps beyond what the process held before, each side on its own."""
    if not Path("/proc/self/status").exists():
        print("memory: measured on Linux only (it reads /proc/self/status)", file=sys.stderr)
        return
    for cell_type, grid, C, V in (("attn", 7, 112, 2539), ("lstm", 7, 112, 2539)):
        case = sizes._replace(V=V, C=C, grid=grid), cell_type, 0.42
        ours, other = (_in_new_process(_peak_memory, module.__file__, *case, side) for side in ("ours", "plain"))
        size, against = f"V={V} {grid}x{grid} 42% padding", "plain captioner"
        yield Row(f"peak memory, {cell_type}", size, against, ours, other, *[ours / other] * 3, "MB")


def _in_new_process(function, *args):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, args)


def _peak_memory(module_file, sizes, cell_type, padding, side):
    """Megabytes at the peak of three training steps, less those held before the first."""
    ours, plain, batch = captioner_and_data(load_module(module_file), sizes, cell_type, padding)
    step = training_step(ours if side == "ours" else plain, batch)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = _status("VmRSS")
    for _ in range(3):
        step()
    return (_status("VmHWM") - before) / 1024


def _status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


# ---------------------------------------------------------------------------------------------------------
# The table
# ---------------------------------------------------------------------------------------------------------


def run(module, rows=tuple(PAIRS), rounds=15, where="cpu", sizes=None, progress=True):
    """Measure the named groups of rows (`PAIRS`, "memory") of a rnn_lstm_captioning module. Returns a list of Rows."""
    measured, sizes = [], sizes or Sizes()
    with like_cudnn(where):
        for name in tqdm(rows, desc="bench", unit="group", disable=not progress):
            if name == "memory":
                measured += memory_rows(module, sizes, where)
            else:
                turns = min(3, rounds) if name in SLOW else rounds
                measured += [compare(pair, turns, where) for pair in PAIRS[name](module, sizes, where)]
    return measured


@contextlib.contextmanager
def like_cudnn(where):
    """Inside, a GPU's products of float32 matrices are in TF32 if those of cuDNN's layers are: by default they are."""
    before = torch.get_float32_matmul_precision()
    if torch.device(where).type == "cuda" and torch.backends.cudnn.allow_tf32:
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def describe_machine(where="cpu"):
    """The processor or GPU, the threads and PyTorch's version, in one line."""
    processor = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        processor = names[0].split(":", 1)[1].strip() if names else processor
    if torch.device(where).type == "cuda":
        products = "TF32" if torch.backends.cudnn.allow_tf32 else "float32"
        processor = f"{torch.cuda.get_device_name(where)}, products in {products}"
    return f"{processor}, {torch.get_num_threads()} threads, torch {torch.__version__}, {platform.system()}"


def table(rows):
    """The rows as aligned text: below 1 ours is the faster, or the lighter."""
    lines = [("", "", "against", "ours", "other", "ratio", "quartiles")]
    for row in rows:
        times = (f"{value:,.1f} {row.unit}" for value in (row.ours, row.other))
        lines.append((row.name, row.size, row.against, *times, f"{row.ratio:.2f}", f"{row.low:.2f} to {row.high:.2f}"))
    widths = [max(map(len, column)) for column in zip(*lines)]
    aligned = [[*map(str.ljust, line[:3], widths), *map(str.rjust, line[3:], widths[3:])] for line in lines]
    return "\n".join("  ".join(line) for line in aligned)


def load_module(path):
    """A rnn_lstm_captioning.py by its path: ours, or a student's."""
    spec = util.spec_from_file_location("rnn_lstm_captioning", path)
    module = util.module_from_spec(spec)
    sys.modules[spec.name] = module  # before it runs: its classes look themselves up there
    spec.loader.exec_module(module)
    return module


def main(arguments=None):
    parser = Parser(prog="python -m eecs598.bench", description="Ours and the other side by side, on this machine.")
    names = (*PAIRS, "memory")
    parser.add_argument("--rows", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--rounds", type=positive, default=15, help="pairs of runs a row (15)")
    parser.add_argument("--module", type=Path, default=MODULE, help="the rnn_lstm_captioning.py to measure")
    parser.add_argument("--device", type=device, default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=positive, help="of the processor; PyTorch's choice if not given")
    parser.add_argument("--json", type=Path, help="write the rows and the machine to this file")
    parser.add_argument("--png", type=Path, help="draw the ratios to this file")
    options = parser.parse_args(arguments)
    if not options.module.is_file():
        parser.error(f"{options.module} is not a file; --module wants a rnn_lstm_captioning.py")
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    rows = run(load_module(options.module), options.rows, options.rounds, options.device)
    machine = describe_machine(options.device)
    print(f"{table(rows)}\n{machine}")
    if options.json:
        found = {"machine": machine, "rows": [row._asdict() for row in rows]}
        write_whole(options.json, lambda file: file.write(json.dumps(found, indent=2).encode()))
    if options.png:
        draw(rows, machine, options.png)


def draw(rows, machine, path):
    """The ratios as bars in `path`; the rows of "growth" as curves in a file beside it."""
    grown = [row for row in rows if row.name.startswith("LSTM, ")]
    figures = {path: plot_ratios([row for row in rows if row not in grown], machine)} if len(grown) < len(rows) else {}
    if grown:
        figures[path.with_stem(f"{path.stem}-growth")] = plot_growth(grown)
    for target, figure in figures.items():
        write_whole(target, lambda file, figure=figure: figure.savefig(file, format="png", dpi=150))

