"""Timing two implementations alternately, so that fluctuations of the machine affect both."""

import contextlib
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch


class Pair(NamedTuple):
    """Two implementations of the same computation, as functions without arguments, with labels."""

    name: str
    size: str
    against: str
    ours: Callable[[], object]
    other: Callable[[], object]


class Row(NamedTuple):
    """The result for a pair: medians in milliseconds (or MB), the median ratio ours / other, and its quartiles."""

    name: str
    size: str
    against: str
    ours: float
    other: float
    ratio: float
    low: float
    high: float
    unit: str = "ms"


def compare(pair, rounds=15, where="cpu"):
    """Run both sides of a `Pair` alternately, after one warm-up round. Returns a `Row`."""
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


def in_new_process(function, *args, environment=None):
    """The result of function(*args) in a new process, with additional environment variables."""
    before = dict(os.environ)
    os.environ |= environment or {}  # so that the new process has them before its first import
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            return pool.submit(function, *args).result()
    finally:
        os.environ.clear()
        os.environ |= before


@contextlib.contextmanager
def like_cudnn(where):
    """A context in which float32 matrix products on a GPU use TF32 if cuDNN's layers do, which is the default."""
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
    """The rows as aligned text. Below 1, ours is faster or needs less memory."""
    lines = [("", "", "against", "ours", "other", "ratio", "quartiles")]
    for row in rows:
        times = (f"{value:,.1f} {row.unit}" for value in (row.ours, row.other))
        lines.append((row.name, row.size, row.against, *times, f"{row.ratio:.2f}", f"{row.low:.2f} to {row.high:.2f}"))
    widths = [max(map(len, column)) for column in zip(*lines)]
    aligned = [[*map(str.ljust, line[:3], widths), *map(str.rjust, line[3:], widths[3:])] for line in lines]
    return "\n".join("  ".join(line) for line in aligned)
