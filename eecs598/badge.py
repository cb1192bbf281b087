"""The "Open in Colab" badge below the title of README.md and of the notebook: `make badge REPO=owner/name`.

Adding a badge again replaces the old one, so the same repository always gives the same text.
"""

import json
import re
import sys
from pathlib import Path

from eecs598 import ROOT
from eecs598.commands import Parser, command
from eecs598.files import write_text

NOTEBOOK = "notebooks/rnn_lstm_captioning.ipynb"
IMAGE = "https://colab.research.google.com/assets/colab-badge.svg"
OLD = re.compile(rf"^\[!\[[^]]*\]\({re.escape(IMAGE)}\)\]\([^)]*\)\n\n?", re.MULTILINE)


class BadgeError(ValueError):
    """There is no place for a badge, or the repository is not one. The message says why, in one line."""


def make_badge(repository, branch="main"):
    """The badge in Markdown, for a GitHub repository "owner/name". Raises BadgeError."""
    if not re.fullmatch(r"[A-Za-z0-9-]+/[\w.-]+", repository, re.ASCII):
        raise BadgeError(f"the repository is {repository!r}; it must be like owner/name, as on GitHub")
    if not re.fullmatch(r"[\w./-]+", branch, re.ASCII):
        raise BadgeError(f"the branch is {branch!r}; it must consist of letters, digits and . _ - /")
    return f"[![Open in Colab]({IMAGE})](https://colab.research.google.com/github/{repository}/blob/{branch}/{NOTEBOOK})"


def add_badge(text, badge):
    """Markdown text with the badge below its first line, the title, instead of an earlier badge. Raises BadgeError."""
    title, _, rest = remove_badge(text).partition("\n")
    if not title.startswith("# "):
        raise BadgeError(f"the text begins with {title!r:.60}; a badge needs a title, like '# Title', to go below")
    rest = rest.lstrip("\n")
    return f"{title}\n\n{badge}\n" + (f"\n{rest}" if rest else "")


def remove_badge(text):
    """Markdown text without its badge, as it was before."""
    return OLD.sub("", text)


def add_badge_to_notebook(notebook, badge):
    """A notebook, as a dict, with the badge in its first cell, instead of an earlier badge. Raises BadgeError."""
    return _with_first_text(notebook, add_badge(_first_text(notebook), badge))


def remove_badge_from_notebook(notebook):
    """A notebook, as a dict, without the badge in its first cell."""
    return _with_first_text(notebook, remove_badge(_first_text(notebook)))


def _first_text(notebook):
    return "".join(notebook["cells"][0]["source"])


def _with_first_text(notebook, text):
    first, *others = notebook["cells"]
    return notebook | {"cells": [first | {"source": text.splitlines(keepends=True)}, *others]}


@command
def main(arguments=None):
    parser = Parser(prog="python -m eecs598.badge", description="Add an Open in Colab badge to README.md and the "
                    "notebook.")  # fmt: skip
    parser.add_argument("repository", metavar="OWNER/NAME", help="the course's repository on GitHub")
    parser.add_argument("--branch", default="main", help="its branch (main)")
    parser.add_argument("--root", type=Path, default=ROOT, metavar="DIR", help="the project's folder (this one)")
    options = parser.parse_args(arguments)
    badge = make_badge(options.repository, options.branch)
    readme, notebook = options.root / "README.md", options.root / NOTEBOOK
    page = add_badge(readme.read_text(encoding="utf-8"), badge)
    try:
        cells = add_badge_to_notebook(json.loads(notebook.read_text(encoding="utf-8")), badge)
    except (json.JSONDecodeError, KeyError, IndexError, TypeError) as error:
        raise BadgeError(f"{notebook}: no notebook ({error})") from None
    write_text(readme, page)
    write_text(notebook, json.dumps(cells, indent=1, ensure_ascii=False) + "\n")
    print(f"badge for {options.repository} in {readme} and {notebook}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
