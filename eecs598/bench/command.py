"""`python -m eecs598.bench`: measure groups of rows, print them, write and draw them."""

import importlib.util
import json
from pathlib import Path

import torch
from tqdm import tqdm

from eecs598.bench.measuring import compare, describe_machine, like_cudnn, table
from eecs598.bench.memory import memory_rows
from eecs598.bench.pairs import MODULE, PAIRS, SLOW, Sizes, load_module
from eecs598.bench.waiting import waiting_rows
from eecs598.choosing import chosen
from eecs598.commands import Parser, check_output, command, device, positive
from eecs598.files import write_whole
from eecs598.vis import plot_growth, plot_ratios

IN_PROCESSES = {"memory": memory_rows, "waiting": waiting_rows}  # each side in processes of its own


def run(module, rows=tuple(PAIRS), rounds=15, where="cpu", sizes=None, progress=True):
    """Measure the named groups of rows (of PAIRS and IN_PROCESSES) of a rnn_lstm_captioning module. Returns Rows."""
    measured, sizes = [], sizes or Sizes()
    with like_cudnn(where):
        for name in tqdm(rows, desc="bench", unit="group", disable=not progress):
            if name in IN_PROCESSES:
                measured += IN_PROCESSES[name](module, sizes, where)
            else:
                turns = min(3, rounds) if name in SLOW else rounds
                measured += [compare(pair, turns, where) for pair in PAIRS[name](module, sizes, where)]
    return measured


def rows_to_measure():
    """The groups of rows that can be measured here: without `eecs598.fast`, as in a student edition, the plain ones."""
    return (*PAIRS, *IN_PROCESSES) if importlib.util.find_spec("eecs598.fast") else ("plain", "features")


@command
def main(arguments=None):
    parser = Parser(prog="python -m eecs598.bench", description="Ours and the other side by side, on this machine.")
    names = rows_to_measure()
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
    try:
        for path in filter(None, (options.json, options.png)):
            check_output(path)
    except ValueError as error:
        parser.error(str(error))
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    rows = run(load_module(options.module), options.rows, options.rounds, options.device)
    machine, choices = describe_machine(options.device), chosen()
    print(f"{table(rows)}\n{machine}")
    if choices:
        print("chosen here, at so many sizes:", "; ".join(choices))
    if options.json:
        found = {"machine": machine, "chosen": choices, "rows": [row._asdict() for row in rows]}
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

