"""The commands `python helpers.py train`, `evaluate` and `caption`, one module each.

    command     the argument parser, and error handling: one line and a non-zero exit status
    decoder     the decoding options that `evaluate` and `caption` share
"""

from eecs598.cli.command import main, parse

__all__ = ["main", "parse"]
