"""The commands `python helpers.py train`, `evaluate` and `caption`, a module each.

    command     the parser of all three, and what an error becomes: one line, and an exit status other than 0
    decoder     the options of decoding, which `evaluate` and `caption` share
"""

from eecs598.cli.command import main, parse

__all__ = ["main", "parse"]
