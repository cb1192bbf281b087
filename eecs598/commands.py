"""What every command shares: errors of one line, and option values that are checked where they are read."""

import argparse
import math

import torch


class Parser(argparse.ArgumentParser):
    """argparse, but wrong usage is one line on standard error."""

    def error(self, message):
        self.exit(2, f"error: {message}; see --help\n")


def at_least(least, most=10**9):
    """The reader of an option's value: a whole number in these bounds; what is larger is a slip of the hand."""

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
        raise argparse.ArgumentTypeError(f"{text!r} is not to be had here ({str(error).splitlines()[0]})") from None
