"""Data-parallel training under torchrun, on one or several machines, on CPUs (gloo) or GPUs (NCCL).

Each process takes its share of every batch and computes that part of the mean loss, times the number of processes, as
DistributedDataParallel averages the gradients. So all processes make the same update as a single process would with the
whole batch, but for trained batch norms, which see one part of it. Without torchrun there is one process, and
everything in this module does nothing.
"""

import atexit
import contextlib
import gc
import importlib
import os
import re
import signal
import threading
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

TIMEOUT = timedelta(hours=12)  # the others wait while one computes image features; a lost process is noticed at once
GROUPS = []  # created by `joined`, released by `_release_groups`
LOST = re.compile(r"connection (was )?(closed|reset|refused)|socket closed|gloo|nccl|process group", re.IGNORECASE)


class ProcessLostError(RuntimeError):
    """Another process of the run has ended, or this one received SIGTERM. The message says how to resume."""


@dataclass(frozen=True)
class Processes:
    """The position of this process in the run: `rank` out of `count`."""

    rank: int = 0
    count: int = 1

    @property
    def first(self):
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def share(self, rows):
        """This process's rows of a batch, and the weight of each row in the mean of the whole batch.

        If there are fewer rows than processes, some get a row of weight 0, as all must take part.
        """
        mine = rows[self.rank :: self.count]
        return (mine, 1 / len(rows)) if len(mine) else (rows[:1], 0.0)

    def together(self, model):
        """The model to use in the forward pass, whose backward pass averages the gradients over all processes.

        It also copies the weights of the first process to the others.
        """
        return model if self.count == 1 else DistributedDataParallel(model)

    def alone(self, model, part_of_more):
        """A context in which gradients are accumulated locally, without communication, if more parts follow."""
        return model.no_sync() if part_of_more and self.count > 1 else contextlib.nullcontext()

    def sum(self, value, device):
        """The sum of a number over all processes, bitwise the same in each."""
        if self.count == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=device)
        dist.all_reduce(total)
        return total.item()

    def agree(self, find):
        """What find() returns in the first process, in all of them."""
        if self.count == 1:
            return find()
        found = [find() if self.first else None]
        dist.broadcast_object_list(found)
        return found[0]

    def wait(self):
        """Wait until all processes have called this."""
        if self.count > 1:
            dist.barrier()

    @contextlib.contextmanager
    def first_before_the_rest(self):
        """A block that the first process of each machine runs before the others, so that they find what it wrote."""
        leader = int(os.environ.get("LOCAL_RANK", 0)) == 0
        if not leader:
            self.wait()
        yield
        if leader:
            self.wait()


def current():
    """The Processes of the current run: those of the group that `joined` created, or a single one."""
    if not dist.is_initialized():
        return Processes()
    return Processes(dist.get_rank(), dist.get_world_size())


@contextlib.contextmanager
def joined(device):
    """Under torchrun, a context in which this process belongs to the group. Yields the device for this process.

    Only the first process prints. device: "cuda" becomes this process's own GPU. Inside, losing another process, and
    the SIGTERM that torchrun sends then, raise ProcessLostError. Raises ValueError if there are too few GPUs.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield device
        return
    if device.type == "cuda":
        local, here = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= here:
            raise ValueError(f"torchrun started at least {local + 1} processes on a machine with {here} GPUs; "
                             f"lower --nproc-per-node to {here}, or pass --device cpu")  # fmt: skip
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    # DistributedDataParallel imports it too: if there is a group by then, it is the default value of its functions'
    # arguments, and so never released.
    importlib.import_module("torch.distributed.nn.functional")
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    GROUPS.append(dist.group.WORLD)
    try:
        quiet = contextlib.nullcontext() if current().first else contextlib.redirect_stdout(None)
        with _sigterm_as_error(), quiet:
            yield device
            current().wait()
    except (RuntimeError, dist.DistError) as error:
        if isinstance(error, ProcessLostError) or not LOST.search(str(error)):
            raise
        raise ProcessLostError(f"another process of the run has ended ({str(error).splitlines()[0][-120:]}); the "
                               "same command resumes from the last checkpoint in --checkpoint-dir") from None
    finally:
        with contextlib.suppress(RuntimeError, ValueError):
            dist.destroy_process_group()


@atexit.register
def _release_groups():
    """End gloo's threads while Python still runs.

    A thread that is late to drop the tensors of the last operations would need the GIL after that, and abort the
    process. Nor may a group be released sooner: if a DistributedDataParallel holds the last reference, torch holds the
    GIL while it waits for a gloo thread, which may be waiting for the GIL. Both were seen on a busy machine.
    """
    if GROUPS:
        gc.collect()  # a DistributedDataParallel that nothing uses any more
        GROUPS.clear()


@contextlib.contextmanager
def _sigterm_as_error():
    """A context in which SIGTERM raises ProcessLostError, so that the run ends with a message."""

    def stop(number, frame):
        raise ProcessLostError("stopped by SIGTERM, probably because another process of the run has ended; the same "
                               "command resumes from the last checkpoint in --checkpoint-dir")  # fmt: skip

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
