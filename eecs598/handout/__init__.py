"""The student edition, made from the solution: answers become TODO boxes, and the notebook loses its outputs.

    python -m eecs598.handout OUT [--parts NAME... | --published] [--due TEXT] [--ai-use TEXT]
                                [--repo OWNER/NAME]
    python -m eecs598.handout --list

    parts       what an answer is, and what its box says: one table
    source      the source file, cut along its syntax tree
    notebook    the notebook: removes cells tagged `answer` (code, or a model answer to a question) or `fast`; for the
                published edition, those tagged `beyond` too
    edition     all files; removes the lines from INSTRUCTORS ONLY to END INSTRUCTORS from those that are shared
"""
