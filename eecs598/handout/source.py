"""The student's source file: the solution with a TODO box in place of each answer.

`cut_source` works on the syntax tree, so the solution needs no markers. What only the answers use is removed with them:
private functions, caches, constants, imports.
"""

import ast
import itertools
import re
import textwrap

from eecs598.handout.parts import HandoutError, answers

UNDONE = 'raise NotImplementedError("TODO: {}")'
WIDTH = 110


def definitions(tree):
    """Yield (name, node) of the functions and classes of a module, and of their methods, such as LSTM.forward."""
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name, node
        for method in node.body if isinstance(node, ast.ClassDef) else ():
            if isinstance(method, ast.FunctionDef):
                yield f"{node.name}.{method.name}", method


def constants(tree):
    """Return (name, node) of the assignments of a module, such as ROWS = 512."""
    return [(node.targets[0].id, node) for node in tree.body
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)]  # fmt: skip


def imports(tree):
    """Return (name, node, alias) of what a module imports, under the name that it has there."""
    return [((alias.asname or alias.name).split(".")[0], node, alias) for node in tree.body
            if isinstance(node, (ast.Import, ast.ImportFrom)) for alias in node.names]  # fmt: skip


def used_names(tree):
    """Return every name and attribute that a piece of code uses, repetitions included."""
    return [node.id if isinstance(node, ast.Name) else node.attr
            for node in ast.walk(tree) if isinstance(node, (ast.Name, ast.Attribute))]  # fmt: skip


def first_line(node):
    """Return the first line of a definition, decorators included. Lines are numbered from 1."""
    return min(part.lineno for part in (node, *getattr(node, "decorator_list", ())))


def cut_source(source, todo, absent=()):
    """Return the solution without its answers.

    todo: names of parts whose answers become TODO boxes. absent: names of parts whose functions are removed, along with
    everything that uses them. The other parts stay as they are. Raises HandoutError if the source lacks an answer.
    """
    found, lines, gone = _find_answers(source), source.splitlines(), set()
    for part, answer, node in sorted(found, key=lambda entry: -entry[2].lineno):
        if part.name in absent:
            gone |= {answer.name, part.serving} - {""}
            _delete(lines, first_line(node), node.end_lineno)
        elif part.name in todo:
            indent = " " * node.body[0].col_offset
            lines[_answer_line(answer, node) - 1 : node.end_lineno] = [indent + UNDONE.format(answer.name)]
    lines = _drop_unused_imports(_prune(_without_classes(lines, gone), gone))
    return _drop_empty_sections(_add_boxes(lines))


def _find_answers(source):
    """Return (part, answer, the function's node) of every answer. Raises HandoutError if one is missing."""
    nodes, found = dict(definitions(ast.parse(source))), []
    for name, (part, answer) in answers().items():
        if name not in nodes:
            raise HandoutError(f"it lacks {name}; a student edition is made from the complete solution")
        if _is_undone(nodes[name], name):
            raise HandoutError(f"{name} is still to do in it; a student edition is made from the complete solution")
        found.append((part, answer, nodes[name]))
    return found


def _is_undone(node, name):
    return ast.unparse(node.body[-1]) == ast.unparse(ast.parse(UNDONE.format(name)))


def _answer_line(answer, node):
    """Return the line where an answer begins: after the docstring, or after the last statement that is given."""
    given = [statement for statement in node.body if isinstance(statement, ast.Assign)
             and answer.given in [getattr(target, "attr", None) for target in statement.targets]]  # fmt: skip
    if answer.given and not given:
        raise HandoutError(f"{answer.name} does not assign self.{answer.given}, after which its answer begins")
    if given or ast.get_docstring(node) is not None:
        return (given or node.body)[0].end_lineno + 1
    return node.body[0].lineno


def _delete(lines, first, last):
    """Delete the lines from `first` to `last`, and the blank lines before them."""
    while not lines[first - 2].strip():
        first -= 1
    del lines[first - 1 : last]


# ---------------------------------------------------------------------------------------------------------
# What goes with the answers
# ---------------------------------------------------------------------------------------------------------


def _without_classes(lines, gone):
    """Remove the classes that serve only parts that are gone."""
    for name, node in reversed(list(definitions(ast.parse("\n".join(lines))))):
        if name in gone:
            _delete(lines, first_line(node), node.end_lineno)
    return lines


def _prune(lines, gone):
    """Remove what uses a name in `gone`, and private functions, caches and constants that nothing uses."""
    while True:
        tree = ast.parse("\n".join(lines))
        used = used_names(tree)
        for name, node in [*definitions(tree), *constants(tree)]:
            inside, short = used_names(node), name.split(".")[-1]
            private = isinstance(node, ast.Assign) or re.match(r"_[^_]|\w+Cache$", short)
            if ("." not in name and gone & set(inside)) or (private and used.count(short) == inside.count(short)):
                gone = gone | {name}
                _delete(lines, first_line(node), node.end_lineno)
                break  # the line numbers have changed
        else:
            return lines


def _drop_unused_imports(lines):
    tree = ast.parse("\n".join(lines))
    used = set(used_names(tree))
    for node in reversed([node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]):
        kept = [alias for name, owner, alias in imports(tree) if owner is node and name in used]
        if len(kept) < len(node.names):
            node.names = kept
            lines[node.lineno - 1 : node.end_lineno] = [ast.unparse(node)] if kept else []
    return lines


def _drop_empty_sections(lines):
    """Remove the sections (a heading between two rules, and what follows) in which only comments are left."""
    rule = re.compile(r"# -{20,}$")
    rules = [i for i, line in enumerate(lines) if rule.match(line)][::2]
    starts = [0, *rules, len(lines)]
    sections = [lines[first:last] for first, last in itertools.pairwise(starts)]
    kept = [section for section in sections if any(line.strip() and line[0] != "#" for line in section)]
    return "\n".join(line for section in kept for line in section).rstrip() + "\n"


def lost_names(source, student):
    """Return the functions and classes that the student's source lost, and method names that no class has any more."""
    before, after = ({name for name, _ in definitions(ast.parse(text))} for text in (source, student))
    short = {name.split(".")[-1] for name in after}
    lost = {name for name in before - after if name.split(".")[0] in after or "." not in name}
    return {name.split(".")[-1] for name in lost} - short


# ---------------------------------------------------------------------------------------------------------
# The box in an answer's place
# ---------------------------------------------------------------------------------------------------------


def _add_boxes(lines):
    """Put a box above each statement that says that a function is still to do."""
    tree, known = ast.parse("\n".join(lines)), answers()
    present = {name for name, _ in definitions(tree)} | {name for name, _, _ in imports(tree)}
    boxes = {node.body[-1].lineno: _box(*known[name], node, present) for name, node in definitions(tree)
             if name in known and _is_undone(node, name)}  # fmt: skip
    return [line for number, text in enumerate(lines, 1) for line in (*boxes.get(number, ()), text)]


def _box(part, answer, node, present):
    """Return the comment lines that say what to do. present: the names that the student's file has."""
    indent = " " * node.body[-1].col_offset
    rule = f"{indent}# {'-' * (WIDTH - 2 - len(indent))}"
    lines = [rule, f"{indent}# TODO {answer.name}"]
    for label, text in _describe(part, answer, node, present).items():
        for piece, line in enumerate(text.splitlines()):
            start = f"{indent}# {'' if piece else label + ':':9}"
            line = re.sub(r"\([^()]{,20}\)", lambda shape: shape[0].replace(" ", "\0"), line)  # (N, H) stays together
            lines += textwrap.wrap(line, WIDTH, initial_indent=start, subsequent_indent=f"{indent}#{' ' * 10}")
    return [line.replace("\0", " ") for line in [*lines, rule]]


def _describe(part, answer, node, present):
    """Return what the box says, label -> text, from the docstring and the table."""
    task, formula, rest = _read_docstring(ast.get_docstring(node) or "", not answer.task)
    checks = ", ".join(f'check("{name}", rlc)' for name in part.checks)
    box = {"Task": answer.task or task, "Shapes": rest, "Formula": answer.formula or formula,
           "Hint": _without_absent(answer.hint, present), "Check": f"{checks}, in the notebook"}  # fmt: skip
    return {label: text for label, text in box.items() if text}


def _without_absent(text, present):
    """Remove the sentences that quote a `name` which the student's file lacks."""
    sentences = re.split(r"(?<=\.) ", text)
    return " ".join(sentence for sentence in sentences if set(re.findall(r"`(\w+)`", sentence)) <= present)


def _read_docstring(text, has_task):
    """Split a docstring into task (the first sentence), formula (indented, or after a colon), and the rest."""
    paragraphs = re.split(r"\n\s*\n", text)
    formulas = [textwrap.dedent(paragraph) for paragraph in paragraphs if paragraph.startswith(" ")]
    plain = " ".join(" ".join(paragraph.split()) for paragraph in paragraphs if not paragraph.startswith(" "))
    if not has_task:
        return "", "\n".join(formulas), plain
    task, _, rest = plain.partition(". ")
    if not formulas and ": " in task:
        task, _, formula = task.partition(": ")
        formulas = [f"{formula.rstrip('.')}."]
    return f"{task.rstrip('.')}.", "\n".join(formulas), rest


# ---------------------------------------------------------------------------------------------------------
# What students read first
# ---------------------------------------------------------------------------------------------------------


def head_source(source, notices):
    """Return the source with `notices` in its docstring, below the first line."""
    first = ast.parse(source).body[0].lineno
    safe = [line.replace("\\", "\\\\").replace('"""', r"\"\"\"") for line in notices]
    wrapped = [line for notice in safe for line in textwrap.wrap(notice, WIDTH)]
    lines = source.splitlines()
    lines[first:first] = ["", *wrapped]
    return "\n".join(lines) + "\n"
