"""Reports on submissions: as text, as Gradescope's results.json, as a row of a CSV table."""

import csv
import hashlib
import io
import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from eecs598 import commands, files
from eecs598.grading.remote import plain

RIGHT, WRONG, UNDONE, STOPPED, ABSENT = "right", "wrong", "not written yet", "stopped", "not in this file"
LONGEST_TEXT, LONGEST_LINE, MOST_ADVICE = 2000, 600, 12  # characters per part, characters per line, lines


@dataclass
class Result:
    """A part's verdict. how: under which condition it is right; text: what is wrong; advice: what costs no points.

    Every text of a submission that enters a report passes through here, as printable lines of at most
    LONGEST_LINE characters, and LONGEST_TEXT for each part.
    """

    verdict: str
    how: str = ""
    text: str = ""
    advice: list = field(default_factory=list)

    def __post_init__(self):
        room = LONGEST_TEXT
        lines, room = _bounded(self.text.splitlines(), room)
        self.text = "\n".join(lines)
        self.advice, _ = _bounded(self.advice[:MOST_ADVICE], room)

    @property
    def label(self):
        return f"{self.verdict} {self.how}".strip()


def _bounded(lines, room):
    """The printable, shortened lines that fit into `room` characters, and the room left."""
    kept = []
    for line in lines:
        line = plain(line, min(LONGEST_LINE, max(room - 1, 4)))
        room -= len(line) + 1
        if room < 0:
            break
        kept.append(line)
    return kept, max(room, 0)


@dataclass
class Report:
    """A submission's results by part, and general advice. conditions: what confined it, and the seed."""

    name: str
    results: dict
    advice: list
    conditions: str = ""

    def points(self, worth):
        """Points by part. worth: part -> points."""
        return {part: worth[part] if result.verdict == RIGHT else 0 for part, result in self.results.items()}


def format_report(report, worth):
    """Format a report as a table, with errors and advice below each part."""
    points = report.points(worth)
    lines = [report.conditions] if report.conditions else []
    lines += [f"{report.name}: {_number(sum(points.values()))} of {_number(sum(worth.values()))} points"]
    width = max(map(len, worth))
    for part, result in report.results.items():
        lines.append(f"  {part:<{width}}  {_number(points[part]):>3} / {_number(worth[part]):<3}  {result.label}")
        lines += [f"      {line}" for line in result.text.splitlines()]
        lines += [f"      advice: {line}" for line in result.advice]
    return "\n".join([*lines, *(f"  advice: {line}" for line in report.advice)])


def _number(value):
    return f"{value:.6g}"


def gradescope_results(report, worth):
    """Return the report as a dict in the format of Gradescope's results.json."""
    points = report.points(worth)
    tests = []
    for part, result in report.results.items():
        advice = [f"advice: {line}" for line in result.advice]
        tests.append({
            "name": part, "score": points[part], "max_score": worth[part],
            "status": "passed" if result.verdict == RIGHT else "failed",
            "output": "\n".join([result.label, *result.text.splitlines(), *advice]), "visibility": "visible",
        })  # fmt: skip
    total = f"{_number(sum(points.values()))} of {_number(sum(worth.values()))} points"
    summary = "\n".join(filter(None, [report.conditions, total, *report.advice]))
    return {"score": sum(points.values()), "output": summary, "visibility": "visible", "tests": tests,
            "stdout_visibility": "hidden"}  # fmt: skip


class Results:
    """Result files, updated with each report. table: path of a CSV file, or None; target: path for JSON, or None.

    many: whether `target` is a folder with one file per submission. Raises ValueError before anything is graded if a
    file cannot be written.
    """

    def __init__(self, worth, table=None, target=None, many=False, inputs=()):
        self.worth, self.rows, self.many = worth, [["submission", "score", "max_score", *worth]], many
        self.table, self.target = table and Path(table), target and Path(target)
        if self.target and many:
            if self.target.exists() and not self.target.is_dir():
                raise ValueError(f"{self.target} is a file, wanted a folder for the results of several submissions")
            commands.make_folder(self.target)
        commands.check_outputs([self.table] if many else [self.target, self.table], inputs)
        if self.table:
            self._write_table()

    def add(self, report):
        """Write a report. Raises OSError and then leaves the results of other submissions unchanged."""
        points = report.points(self.worth)
        row = map(_number, [sum(points.values()), sum(self.worth.values()), *points.values()])
        self.rows.append([as_cell(report.name), *row])
        try:
            if self.table:
                self._write_table()
        finally:
            if self.target:
                target = self.target / f"{as_file_name(report.name)}.json" if self.many else self.target
                text = json.dumps(gradescope_results(report, self.worth), indent=2)
                files.write_text(target, text)

    def _write_table(self):
        text = io.StringIO(newline="")
        csv.writer(text).writerows(self.rows)
        files.write_text(self.table, text.getvalue(), errors="backslashreplace")


def as_cell(name):
    """A name that no spreadsheet interprets as a formula, whichever character separates its cells."""
    return re.sub(r"(^|[;,|\t\"])(\s*[=+\-@%＝＋－＠])", r"\1'\2", name)


def as_file_name(name):
    """A submission's name as a file name. If it is long or has unusual characters, it is cut and ends in a checksum."""
    usual = re.sub(r"[^\w .+=@,()\[\]-]", "_", name)[:80].strip(" .") or "nameless"
    return usual if usual == name else f"{usual}-{hashlib.sha256(name.encode(errors='replace')).hexdigest()[:8]}"
