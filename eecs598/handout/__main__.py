"""The command `python -m eecs598.handout`."""

import re
import sys
from pathlib import Path

from eecs598 import commands
from eecs598.handout.edition import ROOT, Edition, edition_files, write_edition
from eecs598.handout.parts import GROUPS, PARTS, HandoutError, choose_parts


def _parser():
    parser = commands.Parser(prog="eecs598.handout", description="Make the student edition from the solution.")
    add = parser.add_argument
    add("out", nargs="?", type=Path, metavar="OUT", help="the folder to write; OUT.zip, for Drive, comes beside it")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--parts", nargs="+", metavar="NAME", help="parts or groups left to the student (all)")
    chosen.add_argument("--published", action="store_true", help="leave the published assignment's parts; what goes "
                        "beyond them and would give them away is left out")  # fmt: skip
    add("--due", default="", metavar="TEXT", help="a line on when it is due, for the notebook's head and the source's")
    add("--ai-use", default="", metavar="TEXT", help="a line on what use of AI is allowed, in the same places")
    add("--list", action="store_true", help="list the parts and their groups")
    return parser


def _choose(options):
    """The edition that the options ask for. Raises HandoutError."""
    if options.published:
        absent = [name for name, part in PARTS.items() if not part.published]
        return Edition([name for name in PARTS if name not in absent], absent, options.due, options.ai_use)
    names = GROUPS if options.parts is None else re.split(r"[, ]+", " ".join(options.parts))
    return Edition(choose_parts(names), [], options.due, options.ai_use)


def _print_parts():
    print(f"{'part':<32}{'group':<11}published")
    for part in PARTS.values():
        print(f"{part.name:<32}{part.group:<11}{'yes' if part.published else ''}".rstrip())


@commands.command
def main(arguments=None):
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.list:
        _print_parts()
        return 0
    if options.out is None:
        parser.error("OUT is missing: name the folder to write, before the parts")
    try:
        edition = _choose(options)
        files = edition_files(edition, ROOT)
        archive = write_edition(files, options.out)
    except (HandoutError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{options.out}: {len(files)} files, {len(edition.todo)} parts to do; {archive} holds the same")
    return 0


if __name__ == "__main__":
    sys.exit(main())
