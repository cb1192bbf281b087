"""The grader, `grader`, and the process that a submission runs in: `remote` is the grader's end, `sandbox` the other.

Nothing is imported here: `sandbox` must not have the checks and the formulas beside it.
"""
