"""The argument parser of the three commands, and the entry point that runs one."""

import sys

from eecs598 import commands
from eecs598.cli import caption, evaluate, train
from eecs598.training import processes, solver
from eecs598.training.recipes import RECIPES

COMMANDS = {  # the module, a summary, and what to do if memory runs out
    "train": (train, "train captioners on a data file", "lower --hidden"),
    "evaluate": (evaluate, "score a captioner against reference captions", "lower --beam"),
    "caption": (caption, "caption photographs of any size and format", "lower --beam, or caption fewer at a time"),
}
# Arguments whose option has another name.
RENAMED = {
    "beam_size": "--beam", "num_captions": "--number", "no_repeat_ngram": "--no-repeat", "num_epochs": "--epochs",
    "wordvec_dim": "--wordvec", "hidden_dim": "--hidden",
}  # fmt: skip


def make_parser():
    parser = commands.Parser(prog="helpers.py", description="Train, evaluate and use image captioners.")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (module, summary, remedy) in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=summary)
        module.add_options(subparser)
        subparser.set_defaults(run=module.run, parser=subparser, remedy=remedy)
    return parser


def parse(arguments=None):
    """The parsed options. A recipe sets defaults, so options given explicitly override it."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    if getattr(options, "recipe", None):
        options.parser.set_defaults(**RECIPES[options.recipe])
        options = parser.parse_args(arguments)
    if options.run is train.run:
        train.check_options(options)
    return options


@commands.command
def main(arguments, import_captioner):
    """Run a command and return its exit status. import_captioner(): the CaptioningRNN to train or to load."""
    options = parse(arguments)
    try:
        return options.run(options, import_captioner()) or 0
    except BrokenPipeError:
        raise
    except (ValueError, OSError, ImportError, SyntaxError, NotImplementedError, solver.TrainingError,
            processes.ProcessLostError) as error:  # fmt: skip
        names = {name: f"--{name.replace('_', '-')}" for name in vars(options)} | RENAMED
        print(f"error: {commands.in_options(str(error), names)}", file=sys.stderr)
        return 1
    except (RuntimeError, MemoryError) as error:  # in training a TrainingError says what to lower
        if not solver.is_out_of_memory(error):
            raise
        reason = str(error).partition("\n")[0] or "MemoryError"
        print(f"error: out of memory: {options.remedy} ({reason})", file=sys.stderr)
        return 1
