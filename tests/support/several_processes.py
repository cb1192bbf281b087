"""What test_processes.py runs under torchrun, in one launch as far as it can be, since each launch loads torch anew.

    torchrun --nproc-per-node 2 tests/support/several_processes.py FOLDER SCENARIO...
"""

import atexit
import contextlib
import os
import signal
import sys
import time
from pathlib import Path
from unittest import mock

import torch


@atexit.register
def no_thread_of_gloo_is_left():
    """When Python shuts down, such a thread may abort the process. Registered first, and so called last."""
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]  # none without /proc
    if left := [name for name in names if "gloo" in name]:
        print("threads are left:", *left, file=sys.stderr, flush=True)
        os._exit(70)


sys.path[:0] = map(str, Path(__file__).resolve().parents[1:3])
from eecs598.captioner import CELL_TYPES
from eecs598.features import without_image_encoder
from eecs598.files import save_whole
from eecs598.training import checkpoints, processes, solver
from eecs598.training.options import PRECISIONS, Options
from eecs598.training.run import train_captioner
from rnn_lstm_captioning import CaptioningRNN
from support.encoder import MeanEncoder

WORDS = {word: i for i, word in enumerate(["<NULL>", "<START>", "<END>", "<UNK>", *"abcdefg"])}
EXAMPLES = 23  # with a batch of 11, the last one has a single example: not enough to go round
SIZES = {"batch_size": 11, "learning_rate": 0.01, "lr_decay": 0.8}


def data(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    captions = torch.randint(4, 11, (EXAMPLES, 7), generator=generator)
    captions[torch.arange(7) > torch.randint(1, 7, (EXAMPLES, 1), generator=generator)] = 0
    return torch.rand(EXAMPLES, 3, 6, 6, generator=generator).to(dtype), captions


def make_model(cell_type, dtype=torch.float64, model_class=CaptioningRNN):
    torch.manual_seed(1)
    with without_image_encoder(model_class, 3):  # whose building takes longer than the training
        model = model_class(WORDS, 3, 4, 5, cell_type, image_encoder_pretrained=False, ignore_index=0).to(dtype)
    model.image_encoder = torch.nn.Conv2d(3, 3, 2, stride=2, dtype=dtype)
    return model


def train(cell_type, epochs=4, dtype=torch.float64, kept=None, model=None, accumulate=1):
    """The losses, the validation losses and the weights of a run on `data`."""
    model, (images, captions) = model or make_model(cell_type, dtype), data(dtype)
    history = solver.train(model, images, captions, num_epochs=epochs, val_data=(images, captions), checkpoints=kept,
                           options=Options(progress=False, seed=5, accumulate=accumulate), **SIZES)  # fmt: skip
    return {"losses": torch.tensor(history.losses), "val": torch.tensor(history.val_losses), **model.state_dict()}


def same(folder):
    """Every kind of cell, whole batches and batches in parts."""
    results = {f"{cell_type} {accumulate}": train(cell_type, accumulate=accumulate)
               for cell_type in CELL_TYPES for accumulate in (1, 3)}  # fmt: skip
    results["float32"] = train("attn", dtype=torch.float32)
    torch.save(results, folder / f"same-{processes.current().rank}.pt")


def half(folder):
    """The first two epochs, to be gone on from by another number of processes; and who wrote the checkpoints."""

    def told_save(value, path):
        (folder / f"written-{processes.current().rank}").touch()
        save_whole(value, path)

    with mock.patch.object(checkpoints, "save_whole", told_save):
        train("lstm", 2, kept=checkpoints.Checkpoints(folder / "half", {}))


def other_half(folder):
    """Goes on from the two epochs that another number of processes left."""
    result = train("lstm", kept=checkpoints.Checkpoints(folder / "other_half", {}))
    torch.save(result, folder / f"other_half-{processes.current().rank}.pt")


def divided(folder):
    """Each process has a checkpoint_dir of its own, as on machines that share no disk."""
    with contextlib.suppress(checkpoints.CheckpointError):
        train("lstm", 3, kept=checkpoints.Checkpoints(folder / "divided" / str(processes.current().rank), {}))
        raise AssertionError("it went on from two different checkpoints")
    (folder / f"divided-{processes.current().rank}").touch()


def features(folder):
    """Trained on features: they are computed in one process, and read by the other."""

    class ToldEncoder(MeanEncoder):
        def forward(self, images):
            with (folder / "encoded").open("a") as file:
                file.write(f"{processes.current().rank}\n" * len(images))
            time.sleep(0.2)  # time enough for another one to begin too
            return super().forward(images)

    history = train_on_features(folder / "features", 2, ToldEncoder())
    torch.save(history.losses, folder / f"features-{processes.current().rank}.pt")


def train_on_features(folder, epochs, encoder, checkpoint_dir=None):
    """The History of a run on features, which are cached in the folder."""
    model = make_model("attn", torch.float32)
    model.image_encoder = encoder
    images, captions = data(torch.float32)
    pictures = (images * 255).to(torch.uint8)
    return train_captioner(
        model, pictures, captions, epochs, 8, 0.01, device="cpu", features_folder=folder, fast=True,
        checkpoint_dir=checkpoint_dir, options=Options(progress=False),
    )  # fmt: skip


def finished(folder):
    """Each process has a checkpoint_dir of its own, and only in that of the first one are all epochs done."""
    folder, rank = folder / "finished", processes.current().rank
    with contextlib.suppress(checkpoints.CheckpointError):
        train_on_features(folder, 1, MeanEncoder(), folder / f"kept-{rank}")
        raise AssertionError("it trained with two different checkpoint_dirs")
    (folder / f"told-{rank}").touch()


def precision(folder):
    """By timing, each process finds another precision to be the faster one."""
    rank, used = processes.current().rank, []

    def told_autocast(device, precision):
        used.append(precision)
        return contextlib.nullcontext()

    model, (images, captions) = make_model("rnn"), data()
    with (
        mock.patch.object(solver, "best_precision", lambda device: PRECISIONS[rank]),
        mock.patch.object(solver, "autocast", told_autocast),
    ):
        solver.train(model, images, captions, num_epochs=1, options=Options(progress=False, precision="auto"), **SIZES)
    (folder / f"precision-{rank}").write_text(" ".join(sorted(set(used))))


def masks(folder):
    """What is drawn in training, such as dropout masks and sampled captions, is not the same in both processes."""

    class Drawing(CaptioningRNN):
        def forward(self, images, captions):
            drawn.append(torch.rand(3))
            return super().forward(images, captions)

    drawn = []
    train("rnn", 1, model=make_model("rnn", model_class=Drawing))
    torch.save(torch.stack(drawn), folder / f"masks-{processes.current().rank}.pt")


def stopped(folder):
    """Only the second process has heard of an interrupt when it comes to the end of an iteration."""

    class Told(checkpoints.Checkpoints):
        def keep(self, run):
            self.stopping = run.iteration >= 2 and processes.current().rank == 1
            super().keep(run)

    try:
        train("lstm", kept=Told(folder / "stopped", {}))
    except KeyboardInterrupt as stop:
        (folder / f"stopped-{processes.current().rank}").write_text(str(stop))


class Killed(CaptioningRNN):
    """In its eighth iteration the second process is killed."""

    calls = 0

    def forward(self, images, captions):
        self.calls += self.training
        if processes.current().rank == 1 and self.calls == 8:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(images, captions)


def killed(folder):
    train("lstm", model=make_model("lstm", model_class=Killed), kept=checkpoints.Checkpoints(folder / "killed", {}, 1))


SCENARIOS = (same, half, other_half, divided, features, finished, precision, masks, stopped, killed)

if __name__ == "__main__":
    torch.set_num_threads(1)
    try:
        with processes.joined(torch.device("cpu")):
            print("process", processes.current().rank)
            for scenario in SCENARIOS:
                if scenario.__name__ in sys.argv[2:]:
                    scenario(Path(sys.argv[1]))
        assert sys.getrefcount(processes.GROUPS[0]) >= 2, "a process that ends must not be the last to hold the group"
    except processes.ProcessLostError as lost:
        sys.exit(f"error: {lost}")
