"""The command `python -m eecs598.handout`."""

import re
import sys
from pathlib import Path

from eecs598 import ROOT, commands
from eecs598.handout.edition import Edition, edition_files, write_edition
from eecs598.handout.parts import GROUPS, PARTS, choose_parts


def _parser():
    what = "Make the student edition from the solution."
    parser = commands.Parser(prog="python -m eecs598.handout", description=what)
    add = parser.add_argument
    add("out", nargs="?", type=Path, metavar="OUT", help="the folder to write; OUT.zip, for Drive, goes next to it")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--parts", nargs="+", metavar="NAME", help="parts or groups that the student writes (all)")
    chosen.add_argument("--published", action="store_true", help="the student writes the published assignment's "
                        "parts; whatever goes beyond them and would give them away is left out")  # fmt: skip
    add("--due", default="", metavar="TEXT", help="due date, shown at the top of the notebook and of the source")
    add("--ai-use", default="", metavar="TEXT", help="which use of AI is allowed, shown in the same places")
    add("--repo", default="", metavar="OWNER/NAME", help="the edition's repository on GitHub, for an Open in "
        "Colab badge in its README and notebook (no badge)")  # fmt: skip
    add("--list", action="store_true", help="list the parts and their groups, and exit")
    return parser


def _choose(options):
    """Return the edition that the options describe. Raises HandoutError."""
    notices = options.due, options.ai_use, options.repo
    if options.published:
        absent = [name for name, part in PARTS.items() if not part.published]
        return Edition([name for name in PARTS if name not in absent], absent, *notices)
    names = GROUPS if options.parts is None else re.split(r"[, ]+", " ".join(options.parts))
    return Edition(choose_parts(names), [], *notices)


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
        parser.error("OUT is missing: give the folder to write, before --parts")
    edition = _choose(options)
    try:
        files = edition_files(edition, ROOT)
    except SyntaxError as error:  # of the solution or of the notebook
        raise ValueError(error) from None
    archive = write_edition(files, options.out)
    print(f"{options.out}: {len(files)} files, {len(edition.todo)} parts to do; {archive} has the same")
    return 0


if __name__ == "__main__":
    sys.exit(main())
