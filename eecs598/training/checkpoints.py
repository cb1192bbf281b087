"""Checkpoints of a training run, and resuming from them as if the run had not been interrupted.

A checkpoint holds the complete state of a run: weights, optimizer, schedule, position in the epoch, the random states
of Python, numpy and torch, and the history. It also identifies the run (`Checkpoints.identity`), so that no other run
resumes from it. It consists of tensors and plain values: torch.load(path, weights_only=True) reads it. On a CPU with
the same number of threads, a resumed run ends bitwise equal to an uninterrupted one. On other hardware, with another
version of torch, or if `eecs598.fast` chooses other implementations (`eecs598.choosing` can fix them), it resumes as
well, but with different rounding.
"""

import hashlib
import random
import signal
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import torch

from eecs598.files import hash_rows, remove, remove_partial, save_whole
from eecs598.progress import say
from eecs598.training import processes

FORMAT = 1  # to be incremented when older checkpoints can no longer be read, which are then rejected
FROZEN = " frozen"  # ends the description of a weight that is not trained


class CheckpointError(ValueError):
    """A run cannot be saved in its folder or resumed from it. The message says why and what to do."""


class Checkpoints:
    """The checkpoints of one run, in a folder of its own, for `eecs598.training.solver.train`.

    The folder holds the latest checkpoint, such as iteration-00000120.pt; the one before, in case the latest is
    damaged; and best.pt, of the epoch with the best validation score or loss or, without validation data, the lowest
    mean training loss. Each is written atomically.

    folder: created if needed. identity: plain values that identify the data of this run (`identify_data`). every:
    iterations between checkpoints; None: one at the end of each epoch. As a context manager, it delays an interrupt
    (Ctrl-C, the stop button of a notebook) to the end of the iteration, where a checkpoint is written; a second
    interrupt acts at once. Raises ValueError, and CheckpointError if there are checkpoints but none can be read.
    """

    def __init__(self, folder, identity, every=None):
        if every is not None and (not isinstance(every, int) or every < 1):
            raise ValueError(f"checkpoint_every is {every!r}; it must be a whole number of iterations, at least 1")
        self.folder, self.every, self.identity = Path(folder), every, {"format": FORMAT, **identity}
        self.kept, self.stopping, self.processes = [], False, processes.current()
        self.state = self._read_last()
        self.known = self.state["identity"] if self.state else {}
        self.epochs = self.state["run"]["epoch"] if self.state else 0

    def begin(self, run, num_epochs, **options):
        """Restore `run`, a solver's Run, from the latest checkpoint, or write the first checkpoint of a new run.

        options: those that affect the results. They, the data and the model must be those of the checkpoint. Prints
        where the run resumes. Raises CheckpointError.
        """
        self.identity |= {**options, **describe_model(run.model)}
        self._check_processes(run.device)
        if self.state is None:
            return self._write_first(run)
        self._check_identity()
        run.load_state_dict(self.state["run"])
        if run.iteration > num_epochs * run.history.iterations_per_epoch:
            raise CheckpointError(f"num_epochs is {num_epochs}, but the run in {self.folder} is already in epoch "
                                  f"{run.epoch + (run.position > 0)}: {_remedy('raise num_epochs')}")
        set_random_state(self.state["random"])
        self.state = None  # free its memory
        if not self.processes.first:
            return
        remove_partial(self.folder)
        if run.epoch == num_epochs:
            print(f"{self.kept[0]}: all {num_epochs} epochs are done")
        else:
            print(f"resumed from {self.kept[0]} at epoch {run.epoch + 1}, iteration {run.iteration}")

    def keep(self, run):
        """Write a checkpoint if one is due; to be called after each iteration and each epoch.

        If it cannot be written, as on a full disk, there is a warning, and training continues with the previous ones
        still in place. Raises KeyboardInterrupt after an interrupt.
        """
        if run.position == run.history.iterations_per_epoch:
            return  # the epoch is about to end, with a checkpoint then
        stopping = self.processes.sum(float(self.stopping), run.device) > 0  # one of them may be interrupted first
        if run.position == 0 or stopping or (self.every and run.iteration % self.every == 0):
            try:
                self._save(run)
            except OSError as error:
                say(f"warning: no checkpoint of iteration {run.iteration} could be written ({error}); training "
                    f"continues, and {self.kept[0].name} is still there")  # fmt: skip
        if stopping:
            raise KeyboardInterrupt(f"stopped at iteration {run.iteration}; to resume from {self.kept[0]}, train again "
                                    "with the same checkpoint_dir")

    def __enter__(self):
        self.stopping, self._handler = False, signal.getsignal(signal.SIGINT)
        if threading.current_thread() is threading.main_thread() and callable(self._handler):
            signal.signal(signal.SIGINT, self._stop)
        return self

    def __exit__(self, kind, *exception):
        if threading.current_thread() is threading.main_thread() and callable(self._handler):
            signal.signal(signal.SIGINT, self._handler)
        if self.stopping and kind is None:  # interrupted after the last checkpoint
            raise KeyboardInterrupt(f"stopped; {self.kept[0]} has all epochs, and training again goes on from there")

    def _stop(self, number, frame):
        self.stopping = True
        signal.signal(signal.SIGINT, self._handler)  # for a second interrupt

    def _read_last(self):
        """The state of the latest readable checkpoint, or None if there are no checkpoints."""
        paths = sorted(self.folder.glob("iteration-*.pt"), reverse=True)
        for path in paths:
            try:
                state = read_checkpoint(path)
            except CheckpointError as error:
                if self.processes.first:
                    print(f"note: {error}; the checkpoint before it is used", file=sys.stderr)
            else:
                self.kept = [path]
                return state
        if paths:
            raise CheckpointError(f"no checkpoint in {self.folder} can be read: {_remedy()}")

    def _check_processes(self, device):
        """Check that all processes have read the same checkpoint, before the first one writes another."""
        mine = len(self.state["run"]["history"]["losses"]) if self.state else -1
        if self.processes.sum(mine, device) != mine * self.processes.count:
            raise CheckpointError(f"{self.folder} is not the same for all processes: checkpoint_dir must be on a disk "
                                  "shared by all machines of the run")

    def _check_identity(self):
        here, there = self.identity, self.known
        names = [name for name in here | there if here.get(name) != there.get(name)]
        if names:
            listed = [f"{name}: {there.get(name, 'none')} there, {here.get(name, 'none')} here"
                      for name in names[:3]] + [f"{len(names) - 3} more"] * (len(names) > 3)  # fmt: skip
            raise CheckpointError(f"{self.folder} belongs to another run ({'; '.join(listed)}): {_remedy()}")

    def _write_first(self, run):
        """Write a checkpoint before training, so that an unwritable folder is noticed at once."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._save(run)
        except OSError as error:
            raise CheckpointError(f"no checkpoint can be written ({error}): free some space or choose another "
                                  "checkpoint_dir; training has not started") from None

    def _save(self, run):
        path = self.folder / f"iteration-{run.iteration:08d}.pt"
        if self.kept[:1] == [path]:
            return
        if self.processes.first:
            self._write(run, path)
        self.kept = [path, *self.kept][:2]

    def _write(self, run, path):
        state = {"identity": self.identity, "run": run.state_dict(), "random": get_random_state()}
        if run.position == 0 and run.best_epoch == run.epoch > 0:
            save_whole(state, self.folder / "best.pt")  # first: if killed here, the resumed run writes it again
        save_whole(state, path)
        for old in set(self.folder.glob("iteration-*.pt")) - {path, *self.kept[:1]}:
            remove(old)


def read_checkpoint(path):
    """A checkpoint as a dict: "identity", "run" (whose "model" is the state dict) and "random". Tensors on the CPU.

    The file's checksums are verified, which torch.load does not do. Raises CheckpointError.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged:
            raise CheckpointError(f"{path} is damaged (in {damaged})")
        state = torch.load(path, map_location="cpu", weights_only=True)
        return {name: state[name] for name in ("identity", "run", "random")}
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror or error})") from None
    except Exception as error:  # the unpickler may raise anything
        raise CheckpointError(f"{path} is damaged ({type(error).__name__})") from None


def load_best(model, folder):
    """Load the weights of the best epoch into the model. Frozen weights are not in the checkpoint and stay.

    Returns the epoch, counted from 1, and what it was chosen by, lower is better: minus CIDEr-D, the validation loss
    or the mean training loss. Raises CheckpointError.
    """
    path = Path(folder) / "best.pt"
    if not path.exists():
        raise CheckpointError(f"{path} does not exist; it is written at the end of the first epoch")
    state = read_checkpoint(path)
    known = {name: value for name, value in state["identity"].items() if name.startswith("model.")}
    here = {name: value.removesuffix(FROZEN) for name, value in describe_model(model).items()}
    for name, value in known.items():
        if here.get(name) != value.removesuffix(FROZEN):
            raise CheckpointError(f"{name} is {value} in {folder}, {here.get(name, 'missing')} in the model: "
                                  "make the model as for that run")
    model.load_state_dict(state["run"]["model"], strict=False)
    parameters = dict(model.named_parameters())
    trained = [name.removeprefix("model.") for name, value in known.items() if not value.endswith(FROZEN)]
    for name, value in zip(trained, state["run"].get("average", ())):
        parameters[name].data.copy_(value)
    return state["run"]["best_epoch"], state["run"]["best"]


# ---------------------------------------------------------------------------------------------------------
# The identity of a run
# ---------------------------------------------------------------------------------------------------------


def identify_data(images, captions, image_index=None, val_data=None):
    """The shape, dtype and hash of each tensor, by name. Arguments as in `eecs598.training.solver.train`.

    A change in the vocabulary changes the hash of the captions, which are word ids.
    """
    val_images, val_captions = val_data or (None, None)
    tensors = {"images": images, "captions": captions, "image_index": image_index, "val_images": val_images,
               "val_captions": val_captions}  # fmt: skip
    return {name: f"{tuple(tensor.shape)} {_dtype(tensor)} hash {hash_tensors([tensor])}"
            for name, tensor in tensors.items() if tensor is not None}  # fmt: skip


def hash_tensors(tensors):
    """12 hex digits of the tensors' SHA-256."""
    digest = hashlib.sha256()
    for tensor in tensors:
        hash_rows(digest, tensor)
    return digest.hexdigest()[:12]


def describe_model(model):
    """The model's class, and the shape and dtype of each weight and whether it is trained, by name."""
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    layout = {f"model.{name}": f"{tuple(value.shape)} {_dtype(value)}{'' if name in trained else FROZEN}"
              for name, value in model.state_dict().items()}  # fmt: skip
    return {"model": type(model).__name__, **layout}


def _dtype(tensor):
    return str(tensor.dtype).removeprefix("torch.")


# ---------------------------------------------------------------------------------------------------------
# Random states
# ---------------------------------------------------------------------------------------------------------


def get_random_state():
    """The states of the global random generators of Python, numpy and torch, as tensors and plain values."""
    version, words, gauss = random.getstate()
    kind, keys, *rest = np.random.get_state()
    return {
        "python": [version, torch.tensor(words), gauss],
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def set_random_state(state):
    """Restore the result of `get_random_state`. States of GPUs that are not present are ignored."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    for device, value in zip(range(torch.cuda.device_count()), state["cuda"]):
        torch.cuda.set_rng_state(value, device)


def _remedy(also=None):
    return f"{also + ', ' if also else ''}choose another checkpoint_dir, or delete that one to start over"
