"""The grader: `submissions` finds the files, `grader` grades them, `reports` writes the results.

A submission runs in a process of its own, which `jail` starts and confines and `remote` talks to. Of these modules only
`sandbox`, `messages`, `standins` and `scan` are visible inside the jail; `scan` inspects a submission's source without
running it. `underneath` holds reference functions that are sent into the jail. `older` recognizes files of the 2019 and
2020 assignments.

This file imports nothing, so that importing `sandbox` does not load the checks and the formulas.
"""

NAME = "rnn_lstm_captioning"  # of the file that students submit
