"""What all commands share: one-line errors, and checks of option values and output files before any work is done."""

import argparse
import contextlib
import functools
import math
import os
import re
import sys
import tempfile
from pathlib import Path

import torch


class Parser(argparse.ArgumentParser):
    """argparse, with usage errors as one line on standard error."""

    def error(self, message):
        self.exit(2, f"error: {message}; see --help\n")


def command(main):
    """Decorator for the main function of a command, which returns the exit status.

    Characters that the terminal or output file cannot encode are printed as escape sequences. Ctrl-C ends the command
    with one line and status 130, a ValueError or an OSError, as of a full disk, with one line and status 1; a closed
    output pipe, as with `| head -1`, ends it silently with status 0.
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
            _discard_output()
            return 0
        except (ValueError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            try:
                sys.stdout.flush()
            except OSError:
                _discard_output()
            return 1

    return run


def in_options(text, names):
    """An error message with a command's options in place of the arguments that they set.

    names: {argument: option}. "freeze_encoder=True" becomes "--freeze-encoder", "fast=False" becomes "--no-fast".
    """

    def option(found):
        name, value = found.groups()
        if name not in names or not ("_" in name or value):  # without, perhaps a word of English
            return found[0]
        return names[name].replace("--", "--no-") if value == "=False" else names[name]

    return re.sub(r"(?<![\w/.-])([a-z_]+)(=True|=False)?(?![\w/=-]|\.\w)", option, text)  # not in a path


def _discard_output():
    """Let what is still to be printed go nowhere, as Python prints it when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def check_output(path, inputs=()):
    """Check before the work that its result can be written to the file `path`, and make its folder. Raises ValueError.

    inputs: files that the command reads (None for an option not given), none of which may be overwritten.
    """
    path = Path(path)
    if path.exists() and not path.is_file() and not path.is_dir():  # a device, such as /dev/stdout
        return
    if not path.name or path.is_dir():
        raise ValueError(f"{path} is a folder; name a file to write")
    for file in filter(None, inputs):
        with contextlib.suppress(OSError):
            if path.samefile(file):
                raise ValueError(f"{path} is an input of this command and would be overwritten; name another file")
    make_folder(path.parent)


def check_outputs(paths, inputs=()):
    """`check_output` for several files (None for an option not given), which must all be different."""
    given = [Path(path) for path in paths if path]
    for number, path in enumerate(given):
        check_output(path, inputs)
        if path.resolve() in [other.resolve() for other in given[:number]]:
            raise ValueError(f"{path} is named for two results; name two files")


def make_folder(folder):
    """Make a folder for results, with its parents. Raises ValueError if no file can be written in it."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{folder}: the folder cannot be created ({error.strerror}); name another one") from None
    try:  # os.access knows nothing of immutable folders, nor of Windows' permissions
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"{folder}: no file can be written in this folder ({error.strerror}); name another one"
                         ) from None  # fmt: skip


def at_least(least, most=10**9):
    """The type of an option: a whole number, at least `least`. A number above `most` is taken for a typo."""

    def read(text):
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r}, wanted a whole number, at least {least}")
        if int(text) > most:
            raise argparse.ArgumentTypeError(f"{text!r} is too large, wanted at most {most:,}")
        return int(text)

    return read


positive, not_negative, seed = at_least(1), at_least(0), at_least(0, 2**63 - 1)


def above_zero(text, most=math.inf):
    """The type of an option: a positive number, at most `most` and finite."""
    wanted = "a positive number" + (f", at most {most:,}" if most < math.inf else "")
    return _number(text, lambda value: 0 < value <= most and value < math.inf, wanted)


def fraction(text):
    """The type of an option: a number of at least 0 and below 1."""
    return _number(text, lambda value: 0 <= value < 1, "a number, at least 0 and below 1")


def zero_or_more(text):
    """The type of an option: a finite number, at least 0."""
    return _number(text, lambda value: 0 <= value < math.inf, "a number, at least 0")


def _number(text, fits, wanted):
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not fits(value):
        raise argparse.ArgumentTypeError(f"{text!r}, wanted {wanted}")
    return value


def device(text):
    """The type of an option: a torch device that is available here."""
    try:
        return torch.empty(0, device=text).device
    except (RuntimeError, AssertionError) as error:
        why = str(error).partition("\n")[0].partition(". ")[0][:150]
        raise argparse.ArgumentTypeError(f"{text!r} is not available here ({why})") from None
