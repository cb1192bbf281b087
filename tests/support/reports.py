"""What a grader's report says, for tests."""

from eecs598.grading import grader
from eecs598.grading.grader import RIGHT


def lost(report):
    """The parts that are not right."""
    return [part for part, result in report.results.items() if result.verdict != RIGHT]


def explain(report):
    """The report as text, with a point for each part."""
    return grader.format_report(report, dict.fromkeys(report.results, 1))
