"""What the cells of the notebook show: figures, source code, checks, what is still to do."""

import ast
import contextlib
import gc
import inspect
import re
import traceback
from pathlib import Path

from eecs598 import vis
from eecs598.captioner import StepsError, caption_pictures, captions_alone, missing_steps, references_of
from eecs598.checks import CHECKS
from eecs598.checks.levels import PUBLISHED, at_level
from eecs598.grad import CheckError
from eecs598.scenes import judge_caption
from eecs598.shapes import blame_shapes
from eecs598.training.objective import PartsError


class PhotographsError(Exception):
    """There is no data file of photographs and none could be obtained: the notebook skips the cells that need one."""


def show(figure):
    """Display a figure, in a notebook; elsewhere do nothing."""
    with contextlib.suppress(ImportError):
        from IPython import get_ipython
        from IPython.display import display

        if get_ipython() is not None:
            display(figure)


def show_source(function):
    """A function's source, coloured, as a cell's value."""
    from IPython.display import Markdown

    return Markdown(f"```python\n{inspect.getsource(function)}```")


def show_examples(model, data, rows):
    """Val pictures with the model's captions, people's below; for drawn scenes, a mark where all of it is true."""
    images, idx_to_word = data["val_images"][rows], data["vocab"]["idx_to_token"]
    captions = captions_alone(caption_pictures(model, images, idx_to_word))
    judgements = None
    if "val_scenes" in data:
        judgements = [judge_caption(text, data["val_scenes"][row])["right"] for text, row in zip(captions, rows)]
    references = [texts[:1] for texts in references_of(data, rows)]
    return vis.show_captions(images, captions, references=references, judgements=judgements)


def check(part, code):
    """Run one of eecs598.checks.CHECKS on a module's functions; returns its table, raises CheckError.

    code: our rnn_lstm_captioning or a student's. What a file for the published assignment does not have is skipped,
    with a line that says so. What passes only the published notebook's own check is accepted, also with a line.
    """
    needs = CHECKS[part].needs
    missing = [name for name in needs if not hasattr(code, name)]
    if missing:
        return print(f"{part}: skipped, {', '.join(missing)} is not in {code.__name__}")
    functions = [getattr(code, name) for name in needs]
    try:
        return CHECKS[part].run(*functions)
    except CheckError as error:
        undone = re.search(r"(\S+) is not written yet: it raises", str(error))
        if undone:
            raise CheckError(_still_to_do(undone[1], Path(code.__file__)), error.table) from None
        table = find_missing(code) and _passed_as_published(part, functions)
        if not table:
            raise
        missed = ", ".join(row.quantity for row in error.table.rows if not row.passed)
        told = "".join(f": {hint}" for hint in error.table.hints[:1])
        print(f"{part}: right by the published assignment's check; this project's is stricter: {missed} failed{told}")
        return table


def _passed_as_published(part, functions):
    """The table of a check by the published notebook's measure; None where it misses."""
    with at_level(PUBLISHED), contextlib.suppress(CheckError):
        return CHECKS[part].run(*functions)


def find_missing(code):
    """The names that the lesson uses and the module `code` lacks, as a file for the published assignment does."""
    needed = dict.fromkeys(name for check in CHECKS.values() for name in check.needs) | {"captioning_gradients": None}
    steps = missing_steps(code.CaptioningRNN) if hasattr(code, "CaptioningRNN") else []
    return [name for name in needed if not hasattr(code, name)] + [f"CaptioningRNN.{name}" for name in steps]


# ---------------------------------------------------------------------------------------------------------
# Cells that cannot run here
# ---------------------------------------------------------------------------------------------------------


def leave_out_missing(code):
    """From now on, a cell that needs something missing prints one line that says so, and is skipped.

    What may be missing: a function of the lesson that rnn_lstm_captioning, `code`, does not have, as in a file for the
    published assignment; photographs; and names that a skipped cell would have defined. All other exceptions are
    raised as usual; if one comes from a call with wrong shapes, a line above it says which argument is wrong.
    """
    from IPython import get_ipython

    shell = get_ipython()
    if shell is not None:
        others = [kept for kept in shell.ast_transformers if not isinstance(kept, _CellGuard)]
        shell.ast_transformers[:] = [*others, _CellGuard(shell, code)]


class _CellGuard:
    """Wraps each cell's code, so that an exception due to something missing becomes one line.

    IPython calls `visit` with a cell's tree before it runs it. The value of a last expression is kept, and shown after.
    """

    WRAPPED = """
try:
    pass
except Exception as _cell_error:
    if not _leave_out(_cell_error, _cell_names):
        raise
"""

    def __init__(self, shell, code):
        self.shell, self.code, self.lost = shell, code, set()

    def visit(self, tree):
        wrapped, names = ast.parse(self.WRAPPED), sorted(_names_given(tree))
        self.shell.push({"_leave_out": self.leave_out, "_cell_names": names, "_cell_value": None}, interactive=False)
        (attempt,) = wrapped.body
        future = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module == "__future__"]
        attempt.body = [node for node in tree.body if node not in future] or attempt.body
        if isinstance(attempt.body[-1], ast.Expr):
            last = attempt.body[-1]
            kept = ast.Assign([ast.Name("_cell_value", ast.Store())], last.value)
            attempt.body[-1] = ast.copy_location(kept, last)
            wrapped.body.append(ast.copy_location(ast.Expr(ast.Name("_cell_value", ast.Load())), last))
        wrapped.body[:0] = future  # they must come first
        return ast.fix_missing_locations(wrapped)

    def leave_out(self, error, names):
        """Print why a cell that would have given these names is left out, or which argument has the wrong shape.

        Returns whether the cell is left out.
        """
        reason = self._reason(error)
        if reason:
            self.lost.update(names)
            print(f"{reason}: this cell is left out")
        elif blame := blame_shapes(error):
            print(blame)
        return bool(reason)

    def _reason(self, error):
        if isinstance(error, (StepsError, PartsError, PhotographsError)):
            return str(error)
        if isinstance(error, NameError) and error.name in self.lost:
            return f"{error.name} would come from a cell that was left out"
        if isinstance(error, AttributeError) and self._is_asked_for_more(error):
            owner = "" if error.obj is self.code else "CaptioningRNN."
            return f"{owner}{error.name} is not in this file"
        return None

    def _is_asked_for_more(self, error):
        """Whether the file, or its captioner, is asked for a name that it lacks, and not by its own code."""
        frames = {frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)}
        kind = getattr(self.code, "CaptioningRNN", ())
        asked = error.obj is self.code or error.obj is kind or isinstance(error.obj, kind)
        return asked and self.code.__file__ not in frames and find_missing(self.code) != []


def _names_given(tree):
    """The names that a cell assigns, except inside its functions."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.alias):
            yield (node.asname or node.name).split(".")[0]
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        else:
            yield from _names_given(node)


# ---------------------------------------------------------------------------------------------------------
# What is still to do in a student edition
# ---------------------------------------------------------------------------------------------------------


def explain_todos():
    """From now on a part that is still to do stops a notebook's cell with one sentence, not with a traceback.

    Called after %autoreload: recent IPython then patches single functions, which misses decorated methods, and new
    functions that call each other. Here a changed module is reloaded as a whole. Each reload also searches all objects
    for instances of every earlier version of each class, which takes longer each time. Here it searches for those of
    the latest versions only, and skips objects that existed before any of these classes, which would take a second.
    """
    from IPython import get_ipython

    if (shell := get_ipython()) is None:
        return
    if not gc.get_freeze_count():
        gc.freeze()
    shell.set_custom_exc((NotImplementedError,), _show_todo)
    reloader = getattr(shell.magics_manager.registry.get("AutoreloadMagics"), "_reloader", None)
    if hasattr(reloader, "deduper_reloader"):
        reloader.deduper_reloader.enabled = False
    if hasattr(reloader, "old_objects"):
        shell.events.register("pre_run_cell", lambda info: _forget_old_classes(reloader.old_objects))


def _forget_old_classes(old_objects):
    """Of what autoreload brings up to date keep the functions: a class's instances have the newest class already."""
    for key, references in old_objects.items():
        old_objects[key] = [kept for kept in references if not isinstance(kept(), (type, type(None)))]


def _show_todo(shell, kind, error, trace, tb_offset=None):
    """What IPython calls for a NotImplementedError: the sentence, if it is a part's."""
    name = str(error).removeprefix("TODO: ")
    if name == str(error):
        return shell.showtraceback((kind, error, trace), tb_offset=tb_offset)
    innermost = traceback.extract_tb(trace)[-1]
    sentence = f"{kind.__name__}: {_still_to_do(name, Path(innermost.filename))}"
    shell._showtraceback(kind, error, [sentence])
    return [sentence]


def _still_to_do(name, path):
    """What to do about an unwritten part: where it is."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:  # the function was written in a cell
        return f"{name} is still to do. Write it, and run this cell again."
    line = next((f", line {n}" for n, text in enumerate(lines, 1) if f'"TODO: {name}"' in text), "")
    return f"{name} is still to do. Write it in {path.name}{line}; its box says what to do. Then run this cell again."
