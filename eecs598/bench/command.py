"""`python -m eecs598.bench`: run groups of benchmarks, print the table, write it as JSON and plot it."""

import importlib.util
import json
import os
import re
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from eecs598 import commands
from eecs598.bench.measuring import compare, describe_machine, like_cudnn, table
from eecs598.bench.memory import memory_rows
from eecs598.bench.pairs import MODULE, PAIRS, SLOW, Sizes, load_module, module_file
from eecs598.bench.waiting import waiting_rows
from eecs598.choosing import chosen, fixed_choices
from eecs598.commands import Parser, command, device, positive
from eecs598.files import write_text
from eecs598.vis import plot_growth, plot_ratios

IN_PROCESSES = {"memory": memory_rows, "waiting": waiting_rows}  # each side runs in separate processes


def run(module, rows=tuple(PAIRS), rounds=15, where="cpu", sizes=None, progress=True):
    """Benchmark a rnn_lstm_captioning module: the named groups of PAIRS and IN_PROCESSES. Returns a list of Rows."""
    measured, sizes = [], sizes or Sizes()
    if torch.device(where).index is not None and torch.device(where).type == "cuda":
        torch.cuda.set_device(where)  # whose clock is read, and whose kernels are recorded
    with like_cudnn(where):
        for name in tqdm(rows, desc="bench", unit="group", disable=not progress):
            if name in IN_PROCESSES:
                measured += IN_PROCESSES[name](module, sizes, where)
            else:
                turns = min(3, rounds) if name in SLOW else rounds
                measured += [compare(pair, turns, where) for pair in PAIRS[name](module, sizes, where)]
    return measured


def rows_to_measure():
    """The groups that can be measured here: only the plain ones where `eecs598.fast` is missing (student editions)."""
    return (*PAIRS, *IN_PROCESSES) if importlib.util.find_spec("eecs598.fast") else ("plain", "features")


@command
def main(arguments=None):
    parser = Parser(prog="python -m eecs598.bench", description="Benchmark the hand-written code against PyTorch's.")
    names = rows_to_measure()
    parser.add_argument("--rows", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--rounds", type=positive, default=15, help="paired runs for each row (15; of slow rows at "
                        "most 3)")  # fmt: skip
    parser.add_argument("--module", type=module_file, default=MODULE, help="the rnn_lstm_captioning.py to measure")
    parser.add_argument("--device", type=device, default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=positive, help="CPU threads (PyTorch's default)")
    parser.add_argument("--json", type=Path, help="write the rows and the machine's description to this file")
    parser.add_argument("--png", type=Path, help="plot the ratios to this file, and those of growth to "
                        "NAME-growth.png")  # fmt: skip
    options = parser.parse_args(arguments)
    try:
        fixed_choices()
        outputs = (options.json, options.png, options.png and growth_file(options.png))
        commands.check_outputs(outputs, [options.module])
    except ValueError as error:
        parser.error(str(error))
    if options.threads:
        torch.set_num_threads(options.threads)
        os.environ["OMP_NUM_THREADS"] = str(options.threads)  # for groups that start processes
    torch.manual_seed(0)
    try:
        rows = run(load_module(options.module), options.rows, options.rounds, options.device)
    except (ValueError, ImportError, SyntaxError, NotImplementedError) as error:  # of the module, such as a TODO
        print(f"error: {options.module}: {error}", file=sys.stderr)
        return 1
    if not rows:
        print(f"error: nothing could be measured of {', '.join(options.rows)}", file=sys.stderr)
        return 1
    machine, choices = describe_machine(options.device), chosen()
    print(f"{table(rows)}\n{machine}")
    if choices:
        print("implementations chosen, with the number of sizes:", "; ".join(choices))
    if options.json:
        found = {"machine": machine, "chosen": choices, "rows": [row._asdict() for row in rows]}
        write_text(options.json, json.dumps(found, indent=2))
    if options.png:
        print("plotted:", *draw(rows, machine, options.png))


def growth_file(path):
    """The file for the curves of the rows of "growth", beside that for the bars of all others."""
    return path.with_stem(f"{path.stem}-growth")


def draw(rows, machine, path):
    """Plot the ratios as bars in `path`, and those of "growth" as curves in `growth_file`. Returns the files."""
    grown = [row for row in rows if re.fullmatch(r"LSTM, [HT]=\d+", row.name)]
    figures = {path: plot_ratios([row for row in rows if row not in grown], machine)} if len(grown) < len(rows) else {}
    if grown:
        figures[growth_file(path)] = plot_growth(grown)
    for target, figure in figures.items():
        figure.savefig(target, format="png", dpi=150)
    return list(figures)
