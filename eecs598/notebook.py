"""What the cells of the notebook show: figures, source code, checks, what is still to do."""

import contextlib
import inspect
import re
import traceback
from pathlib import Path

from eecs598 import vis
from eecs598.captioner import caption_pictures, captions_alone, people
from eecs598.checks import CHECKS
from eecs598.grad import CheckError
from eecs598.scenes import judge_caption


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
    references = [texts[:1] for texts in people(data, rows)]
    return vis.show_captions(images, captions, references=references, judgements=judgements)


def check(part, code):
    """Run one of eecs598.checks.CHECKS on a module's functions; returns its table, raises CheckError.

    code: our rnn_lstm_captioning or a student's. What a file for the published assignment does not have is skipped,
    with a line that says so.
    """
    needs = CHECKS[part].needs
    missing = [name for name in needs if not hasattr(code, name)]
    if missing:
        return print(f"{part}: skipped, {', '.join(missing)} is not in {code.__name__}")
    try:
        return CHECKS[part].run(*(getattr(code, name) for name in needs))
    except CheckError as error:
        undone = re.search(r"(\S+) is not written yet: it raises", str(error))
        if not undone:
            raise
        raise CheckError(_still_to_do(undone[1], Path(code.__file__)), error.table) from None


def explain_todos():
    """From now on a part that is still to do stops a notebook's cell with one sentence, not with a traceback.

    Called after %autoreload: recent IPython then patches single functions, which misses decorated methods, and new
    functions that call each other. Here a changed module is to be read anew as a whole. And each reload looks for the
    instances of every class that the module ever had, which takes longer each time: here, of the last ones.
    """
    from IPython import get_ipython

    shell = get_ipython()
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
    lines = path.read_text(encoding="utf-8").splitlines()
    line = next((f", line {n}" for n, text in enumerate(lines, 1) if f'"TODO: {name}"' in text), "")
    return f"{name} is still to do. Write it in {path.name}{line}, where its box says what; then run this cell again."
