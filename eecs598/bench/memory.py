"""Peak memory of a training step, with each implementation in a process of its own."""

import sys
from pathlib import Path

import torch

from eecs598.bench.measuring import Row, in_new_process
from eecs598.bench.pairs import captioner_and_data, fast_training_step, load_module, training_step


def memory_rows(module, sizes, where):
    """The increase in peak resident memory during a few training steps, in a new process for each implementation."""
    if not Path("/proc/self/status").exists():
        print("memory: measured on Linux only (it reads /proc/self/status)", file=sys.stderr)
        return
    if torch.device(where).type != "cpu":
        print(f"memory: measured on the CPU only, not on {where}", file=sys.stderr)
        return
    for cell_type, grid, C, V in (("attn", 7, 112, 2539), ("lstm", 7, 112, 2539)):
        case = sizes._replace(V=V, C=C, grid=grid), cell_type, 0.42
        ours, other = (in_new_process(_peak_memory, module.__file__, *case, side) for side in ("ours", "plain"))
        size, against = f"V={V} {grid}x{grid} 42% padding", "plain captioner"
        yield Row(f"peak memory, {cell_type}", size, against, ours, other, *[ours / other] * 3, "MB")


def _peak_memory(module_file, sizes, cell_type, padding, side):
    """The peak memory of three training steps in megabytes, minus that before the first."""
    ours, plain, batch = captioner_and_data(load_module(module_file), sizes, cell_type, padding)
    step = fast_training_step(ours, batch) if side == "ours" else training_step(plain, batch)
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    before = _status("VmRSS")
    for _ in range(3):
        step()
    return (_status("VmHWM") - before) / 1024


def _status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))
