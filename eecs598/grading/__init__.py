"""The grader: `grader` judges, `submissions` finds what to judge, `reports` writes the results.

A submission runs in another process: `remote` is the grader's end of it, `jail` starts and confines it. Inside the
jail are `sandbox`, `messages` and `standins` alone of these files. `underneath` is lent to it, `scan` reads its text.

Nothing is imported here: `sandbox` must not have the checks and the formulas beside it.
"""

from pathlib import Path

NAME = "rnn_lstm_captioning"  # of the file that students hand in
ROOT = Path(__file__).resolve().parents[2]  # the project
