"""Checkpoints of a training run, and going on from them as if the run had never stopped.

A checkpoint holds all that one iteration hands to the next: weights, optimizer, schedule, the place in the epoch's
order, the random states of Python, numpy and torch, the history; and what the run is of (`Checkpoints.identity`), so
that no other run goes on from it. Tensors and plain values only: torch.load(path, weights_only=True) reads it.
On a CPU, with the same number of threads, a run that was stopped and resumed ends with the same bits as one that was
not. With other hardware or another release of torch it goes on just as well, but sums are rounded differently.
"""

import contextlib
import hashlib
import random
import signal
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import torch

from eecs598.files import page_releaser, save_whole
from eecs598.training import processes

FORMAT = 1  # to be raised when a checkpoint comes to hold something else: older ones are then refused


class CheckpointError(ValueError):
    """A run cannot be kept in its folder, or not go on from there; the message says why and what to do."""


class Checkpoints:
    """The checkpoints of one run, in a folder of its own, for `eecs598.training.solver.train` to keep and resume from.

    In the folder: iteration-00000120.pt, the last one, and the one before it, for where the last is damaged; and
    best.pt, of the epoch with the lowest validation loss or, without validation data, the lowest mean training loss.
    Each is written whole or not at all.

    folder: made where there is none. identity: plain values that tell this run's data from other data
    (`describe_data`). every: iterations from one checkpoint to the next; None: one at the end of each epoch. As a
    context, it makes an interrupt (Ctrl-C, a notebook's stop button) wait for the end of the iteration, so that the
    run is stopped between two iterations, with a checkpoint; a second interrupt does not wait.
    Raises ValueError, and CheckpointError where there are checkpoints but none can be read.
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
        """Put `run`, a solver's Run, where the folder's run stopped; a new run gets its first checkpoint.

        options: those that change the run's numbers; they, the data and the model must be those of the folder's
        run. Says in one line where it goes on. Raises CheckpointError.
        """
        self.identity |= {**options, **describe_model(run.model)}
        self._check_processes(run.device)
        if self.state is None:
            return self._write_first(run)
        self._check_identity()
        run.load_state_dict(self.state["run"])
        if run.iteration > num_epochs * run.history.iterations_per_epoch:
            raise CheckpointError(f"num_epochs is {num_epochs}, but the run in {self.folder} is past that, in epoch "
                                  f"{run.epoch + (run.position > 0)}: {_remedy('raise num_epochs')}")
        set_random_state(self.state["random"])
        self.state = None  # its memory is no longer needed
        if not self.processes.first:
            return
        for part in self.folder.glob(".*.part"):  # a killed run leaves half a file
            _remove(part)
        if run.epoch == num_epochs:
            print(f"{self.kept[0]}: all {num_epochs} epochs are done")
        else:
            print(f"resumed from {self.kept[0]} at epoch {run.epoch + 1}, iteration {run.iteration}")

    def keep(self, run):
        """To be called after each iteration and each epoch: write a checkpoint where one is due.

        A checkpoint that cannot be written, as on a full disk, costs a warning; training goes on and the ones before
        stay. Raises KeyboardInterrupt after an interrupt.
        """
        if run.position == run.history.iterations_per_epoch:
            return  # the epoch is about to end, with a checkpoint then
        if run.position == 0 or self.stopping or (self.every and run.iteration % self.every == 0):
            try:
                self._save(run)
            except OSError as error:
                print(f"warning: no checkpoint of iteration {run.iteration} could be written ({error}); training goes "
                      f"on, and {self.kept[0].name} is still there", file=sys.stderr)  # fmt: skip
        if self.stopping:
            raise KeyboardInterrupt(f"stopped at iteration {run.iteration}; {self.kept[0]} is there to go on from: "
                                    "train again with the same checkpoint_dir")

    def __enter__(self):
        self.stopping, self._handler = False, signal.getsignal(signal.SIGINT)
        if threading.current_thread() is threading.main_thread() and callable(self._handler):
            signal.signal(signal.SIGINT, self._stop)
        return self

    def __exit__(self, *exception):
        if threading.current_thread() is threading.main_thread() and callable(self._handler):
            signal.signal(signal.SIGINT, self._handler)

    def _stop(self, number, frame):
        self.stopping = True
        signal.signal(signal.SIGINT, self._handler)  # for the second one

    def _read_last(self):
        """The state of the newest checkpoint that can be read; None in a folder without any."""
        paths = sorted(self.folder.glob("iteration-*.pt"), reverse=True)
        for path in paths:
            try:
                state = read_checkpoint(path)
            except CheckpointError as error:
                if self.processes.first:
                    print(f"note: {error}; it is left aside for the checkpoint before it", file=sys.stderr)
            else:
                self.kept = [path]
                return state
        if paths:
            raise CheckpointError(f"no checkpoint in {self.folder} can be read: {_remedy()}")

    def _check_processes(self, device):
        """All processes must have read the same checkpoint, before the first one writes another."""
        mine = len(self.state["run"]["history"]["losses"]) if self.state else -1
        if self.processes.sum(mine, device) != mine * self.processes.count:
            raise CheckpointError(f"{self.folder} is not the same for all processes: checkpoint_dir must be on a disk "
                                  "that all machines of the run share")

    def _check_identity(self):
        here, there = self.identity, self.known
        names = [name for name in here | there if here.get(name) != there.get(name)]
        if names:
            told = [f"{name}: {there.get(name, 'none')} there, {here.get(name, 'none')} here"
                    for name in names[:3]] + [f"{len(names) - 3} more"] * (len(names) > 3)  # fmt: skip
            raise CheckpointError(f"{self.folder} is of another run ({'; '.join(told)}): {_remedy()}")

    def _write_first(self, run):
        """Before anything is trained, so that a folder that cannot be written costs nothing."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._save(run)
        except OSError as error:
            raise CheckpointError(f"no checkpoint can be written ({error}): make room or choose another "
                                  "checkpoint_dir; nothing is trained yet") from None

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
            save_whole(state, self.folder / "best.pt")  # first: killed here, the run comes by once more
        save_whole(state, path)
        for old in set(self.folder.glob("iteration-*.pt")) - {path, *self.kept[:1]}:
            _remove(old)


def read_checkpoint(path):
    """A checkpoint's dict: "identity", "run" (its "model" is the state dict) and "random"; tensors on the CPU.

    Every byte is compared with the file's checksums, which torch.load does not do. Raises CheckpointError.
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
    except Exception as error:  # whatever the unpickler raises for a file that is none
        raise CheckpointError(f"{path} is damaged ({type(error).__name__})") from None


def load_best(model, folder):
    """Put the weights of the folder's best epoch into the model; what was frozen is not in it and stays.

    Returns the epoch, from 1, and its loss. Raises CheckpointError.
    """
    state = read_checkpoint(Path(folder) / "best.pt")
    known = {name: value for name, value in state["identity"].items() if name.startswith("model.")}
    here = describe_model(model)
    for name, value in known.items():
        if here.get(name) != value:
            raise CheckpointError(f"{name} is {value} in {folder}, {here.get(name, 'missing')} in the model: "
                                  "make the model as it was made for that run")
    model.load_state_dict(state["run"]["model"], strict=False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter, value in zip(trained, state["run"].get("average", ())):
        parameter.data.copy_(value)
    return state["run"]["best_epoch"], state["run"]["best"]


# ---------------------------------------------------------------------------------------------------------
# What a run is of
# ---------------------------------------------------------------------------------------------------------


def describe_data(images, captions, image_index=None, val_data=None):
    """Each tensor's shape, type and hash, by name. Arguments as for `eecs598.training.solver.train`.

    Another vocabulary shows in the captions' hash, as they are ids of its words.
    """
    val_images, val_captions = val_data or (None, None)
    tensors = {"images": images, "captions": captions, "image_index": image_index, "val_images": val_images,
               "val_captions": val_captions}  # fmt: skip
    return {name: f"{tuple(tensor.shape)} {_dtype(tensor)} hash {hash_tensors([tensor])}"
            for name, tensor in tensors.items() if tensor is not None}  # fmt: skip


def hash_tensors(tensors):
    """sha256 of every byte of the tensors' values, 12 digits; about 1 GB/s, and a mapped file does not fill memory."""
    digest = hashlib.sha256()
    for tensor in map(torch.atleast_1d, tensors):
        release_pages = page_releaser(tensor)
        for rows in tensor.detach().split(256):
            digest.update(rows.cpu().contiguous().flatten().view(torch.uint8).numpy())
            release_pages()
    return digest.hexdigest()[:12]


def describe_model(model):
    """The model's class, each weight's shape, type and whether it is trained, by name."""
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    layout = {f"model.{name}": f"{tuple(value.shape)} {_dtype(value)}{'' if name in trained else ' frozen'}"
              for name, value in model.state_dict().items()}  # fmt: skip
    return {"model": type(model).__name__, **layout}


def _dtype(tensor):
    return str(tensor.dtype).removeprefix("torch.")


# ---------------------------------------------------------------------------------------------------------
# Random states
# ---------------------------------------------------------------------------------------------------------


def get_random_state():
    """The states of the generators that Python, numpy and torch share among all their callers, as plain values."""
    version, words, gauss = random.getstate()
    kind, keys, *rest = np.random.get_state()
    return {
        "python": [version, torch.tensor(words), gauss],
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def set_random_state(state):
    """Put back what `get_random_state` gave; a GPU that is not here is passed over."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    for device, value in zip(range(torch.cuda.device_count()), state["cuda"]):
        torch.cuda.set_rng_state(value, device)


def _remedy(also=None):
    return f"{also + ', ' if also else ''}choose another checkpoint_dir, or delete that one to begin anew"


def _remove(path):
    with contextlib.suppress(OSError):
        path.unlink()
