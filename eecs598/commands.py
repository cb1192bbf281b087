"""What every command shares: errors of one line, and values and files that are checked before the work."""

import argparse
import contextlib
import functools
import math
import os
import sys
from pathlib import Path

import torch


class Parser(argparse.ArgumentParser):
    """argparse, but wrong usage is one line on standard error."""

    def error(self, message):
        self.exit(2, f"error: {message}; see --help\n")


def command(main):
    """Decorates a command's main function, which returns the exit status.

    What the terminal, or the file that the output goes to, cannot encode is printed as an escape sequence. Ctrl-C ends
    the command with one line and status 130, a reader that has seen enough, as `head -1` does, with none and 0.
    """

    @functools.wraps(main)
    def run(*arguments):
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        try:
            status = main(*arguments)
            sys.stdout.flush()
            return status
        except KeyboardInterrupt as stop:
            print(f"error: {stop if str(stop) else 'stopped'}", file=sys.stderr)
            return 130
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0

    return run


def check_output(path, inputs=()):
    """Before the work whose result goes to the file `path`: make its folder. Raises ValueError if it cannot be written.

    inputs: files that the command reads, None among them for those not given; the output may be none of them.
    """
    path = Path(path)
    if not path.name or path.is_dir():
        raise ValueError(f"{path} is a folder: name the file to write in it")
    for file in filter(None, inputs):
        with contextlib.suppress(OSError):
            if path.samefile(file):
                raise ValueError(f"{path} is the file that the command reads: name another one to write")
    make_folder(path.parent)


def make_folder(folder):
    """Make a folder for results, and those above it. Raises ValueError if no file can be written there."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{folder}: the folder cannot be made ({error.strerror}); name another one") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"{folder}: no file can be written in this folder; name another one")


def at_least(least, most=10**9):
    """The reader of an option's value: a whole number in these bounds; what is larger is taken for a typo."""

    def read(text):
        if not text.isdecimal() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r}, wanted a whole number from {least} to {most}")
        return int(text)

    return read


positive, not_negative, seed = at_least(1), at_least(0), at_least(0, 2**63 - 1)


def above_zero(text):
    """An option's value: a positive number."""
    return _number(text, lambda value: 0 < value < math.inf, "a positive number")


def zero_or_more(text):
    """An option's value: a finite number, not negative."""
    return _number(text, lambda value: 0 <= value < math.inf, "0 or a positive number")


def _number(text, fits, wanted):
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not fits(value):
        raise argparse.ArgumentTypeError(f"{text!r}, wanted {wanted}")
    return value


def device(text):
    """An option's value: a torch device that is to be had here."""
    try:
        return torch.empty(0, device=text).device
    except (RuntimeError, AssertionError) as error:
        why = str(error).partition("\n")[0].partition(". ")[0][:150]
        raise argparse.ArgumentTypeError(f"{text!r} is not to be had here ({why})") from None
