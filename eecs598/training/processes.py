"""Several processes that train one model, under torchrun: on one machine or many, on CPUs (gloo) or GPUs (NCCL).

Each takes its share of every batch and computes its part of the batch's mean loss. DistributedDataParallel adds up
the gradients, so that all make the same step, the one that a single process would have made with the whole batch.
Without torchrun there is one process, and everything here does nothing.
"""

import contextlib
import os
import re
import signal
import threading
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

PATIENCE = timedelta(hours=12)  # the others wait while one computes image features; a lost one is noticed at once
GROUPS = []  # those that `joined` made
LOST = re.compile(r"connection (was )?(closed|reset|refused)|socket closed|gloo|nccl|process group", re.IGNORECASE)


class ProcessLostError(RuntimeError):
    """Another process of the run has ended, or this one was told to; the message says how to go on."""


@dataclass(frozen=True)
class Processes:
    """This process among those of the run: `rank` of `count`."""

    rank: int = 0
    count: int = 1

    @property
    def first(self):
        """Whether this is the one that writes and prints."""
        return self.rank == 0

    def share(self, rows):
        """This process's part of a batch's rows, and how much of the batch's mean each row of it is.

        Where there are fewer rows than processes, some get a row that counts nothing: all must take part.
        """
        mine = rows[self.rank :: self.count]
        return (mine, 1 / len(rows)) if len(mine) else (rows[:1], 0.0)

    def together(self, model):
        """What takes the model's place in the forward pass: after a backward pass, gradients are sums over all.

        The model's weights are made equal to those of the first process.
        """
        if self.count == 1:
            return model
        # DistributedDataParallel takes the mean; a sum is wanted, as each loss is already its share of the whole.
        wrapped = DistributedDataParallel(model)
        wrapped.register_comm_hook(None, _add_up)
        return wrapped

    def alone(self, model, part_of_more):
        """A context in which a backward pass is this process's alone: the gradients stay here until the last part."""
        return model.no_sync() if part_of_more and self.count > 1 else contextlib.nullcontext()

    def sum(self, value, device):
        """The sum of a number over all processes, the same bits in each."""
        if self.count == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=device)
        dist.all_reduce(total)
        return total.item()

    def wait(self):
        """Until all have come here."""
        if self.count > 1:
            dist.barrier()

    @contextlib.contextmanager
    def first_before_the_rest(self):
        """A block that the first process of each machine goes through before the others: they find what it wrote."""
        leader = int(os.environ.get("LOCAL_RANK", 0)) == 0
        if not leader:
            self.wait()
        yield
        if leader:
            self.wait()


def _add_up(_, bucket):
    return dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda done: done.value()[0])


def current():
    """The processes of this run: those of the group that `joined` made, else one alone."""
    if not dist.is_initialized():
        return Processes()
    return Processes(dist.get_rank(), dist.get_world_size())


@contextlib.contextmanager
def joined(device):
    """Under torchrun: join the other processes, and leave them at the end. Yields the device for this process.

    Only the first one prints.

    device: "cuda" becomes this process's own GPU of its machine. Inside, the loss of another process and SIGTERM,
    which torchrun then sends, are a ProcessLostError. Raises ValueError where there are too few GPUs.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield device
        return
    if device.type == "cuda":
        local, here = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= here:
            raise ValueError(f"torchrun started {local + 1} or more processes on a machine with {here} GPUs: "
                             f"lower --nproc-per-node to {here}, or pass --device cpu")  # fmt: skip
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    # Held for good: if a DistributedDataParallel is the last to let go of it, torch keeps Python's lock while it waits
    # for a thread of gloo's, which may be waiting for that lock (seen on a machine with much else to do).
    GROUPS.append(dist.group.WORLD)
    try:
        quiet = contextlib.nullcontext() if current().first else contextlib.redirect_stdout(None)
        with _terminated_with_a_word(), quiet:
            yield device
            current().wait()
    except (RuntimeError, dist.DistError) as error:
        if isinstance(error, ProcessLostError) or not LOST.search(str(error)):
            raise
        raise ProcessLostError(f"another process of the run has ended ({str(error).splitlines()[0][-120:]}): the "
                               "same command goes on from the last checkpoint in --checkpoint-dir") from None
    finally:
        with contextlib.suppress(RuntimeError, ValueError):
            dist.destroy_process_group()


@contextlib.contextmanager
def _terminated_with_a_word():
    """SIGTERM raises ProcessLostError, so that the run ends with a line instead of nothing."""

    def stop(number, frame):
        raise ProcessLostError("stopped by SIGTERM, as when another process of the run has ended: the same command "
                               "goes on from the last checkpoint in --checkpoint-dir")  # fmt: skip

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
