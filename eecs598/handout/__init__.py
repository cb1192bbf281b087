"""The student edition, made from the solution: each answer becomes a TODO box, each output of the notebook goes.

    python -m eecs598.handout OUT [--parts NAME... | --published] [--due TEXT] [--ai-use TEXT]
    python -m eecs598.handout --list

    parts       what an answer is, and what its box says: one table
    source      the source file, cut along its syntax tree
    notebook    the notebook: cells with the tag `answer` or `fast` go, with `beyond` from the published edition
    edition     all files; of those that both editions share, the lines from INSTRUCTORS ONLY to END INSTRUCTORS go
"""
