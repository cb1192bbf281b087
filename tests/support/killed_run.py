"""A training run that is killed at random moments and taken up again each time; test_checkpoints.py runs it.

    python tests/support/killed_run.py FOLDER KILLS SEED

A process that imports torch once, and computes nothing itself, forks a child for each attempt. The child tells
through a pipe where it is: "e" encoding pictures, "w" writing a file, "s" in a training step. Some events and up to
4 ms later it gets a SIGKILL. Prints, as JSON, where it was each time; leaves FOLDER/killed.pt, the result of the run
that was killed, and FOLDER/whole.pt, that of the same run without a kill and without checkpoints.
"""

import contextlib
import gc
import io
import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import numpy as np
import torch
import torch._dynamo  # as the first optimizer would in each child, for two seconds

sys.path[:0] = map(str, Path(__file__).resolve().parents[1:3])
from eecs598 import encoders, features, files
from eecs598.captioner import make_captioner
from eecs598.training import checkpoints
from eecs598.training.options import Options
from eecs598.training.run import train_captioner
from eecs598.utils import reset_seed
from rnn_lstm_captioning import CaptioningRNN


def tell(event):
    """Where this process is; a child writes it to its pipe."""


class SlowEncoder(torch.nn.Module):
    """The mean colour of each cell of a 2 x 2 grid."""

    out_channels, image_size = 3, None

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.full((), 1 / 255))

    def forward(self, images):
        tell(b"e")
        time.sleep(0.002)
        return torch.nn.functional.adaptive_avg_pool2d(images.float(), 2) * self.scale


class NoisyCaptioner(CaptioningRNN):
    """Its loss takes from every random generator, so that each one's state must come back."""

    def forward(self, images, captions):
        tell(b"s")
        noise = torch.rand(()) + random.random() + np.random.rand() if self.training else 0
        return super().forward(images, captions) * (1 + noise)


def train(result, checkpoint_dir, features_folder):
    """One attempt, from where the last one was killed to the end; the losses and weights go to the file `result`."""
    reset_seed(0)
    words = ["<NULL>", "<START>", "<END>", "<UNK>", *"abcdefgh"]
    data = {"vocab": {"token_to_idx": {word: i for i, word in enumerate(words)}, "idx_to_token": words}}
    images = torch.randint(0, 256, (96, 3, 4, 4), dtype=torch.uint8)
    captions = torch.randint(4, 12, (96, 6)).index_fill(1, torch.tensor(0), 1).index_fill(1, torch.tensor(5), 2)
    model = make_captioner(NoisyCaptioner, data, "lstm", SlowEncoder(), hidden_dim=8, wordvec_dim=4)
    if checkpoint_dir and list(checkpoint_dir.glob("iteration*")):
        reset_seed(time.time_ns())  # the states in the checkpoint count, not those of this process
    history = train_captioner(
        model, images, captions, 40, 10, 1e-2, 0.95, "cpu", val_data=(images[:20], captions[:20]),
        features_folder=features_folder, checkpoint_dir=checkpoint_dir,
        options=Options(checkpoint_every=2, progress=False),
    )  # fmt: skip
    files.save_whole({"losses": history.losses, "model": model.state_dict(), "next": torch.rand(3)}, result)


def fork(kill_after, delay, *arguments):
    """An attempt in a child; after so many events and `delay` seconds more it is killed. Returns its last event.

    kill_after None: it is left to end.
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        run_child(write, *arguments)
    os.close(write)
    events = b""
    with os.fdopen(read, "rb", buffering=0) as pipe:
        while (kill_after is None or len(events) < kill_after) and (event := pipe.read(1)):
            events += event
        if kill_after is not None:
            time.sleep(delay)
            os.kill(child, signal.SIGKILL)
        events += pipe.read() or b""
    _, status = os.waitpid(child, 0)
    if os.waitstatus_to_exitcode(status) != (0 if kill_after is None else -signal.SIGKILL):
        sys.exit(f"a child ended with {os.waitstatus_to_exitcode(status)} after {len(events)} events")
    return events[-1:].decode()


def run_child(pipe, *arguments):
    globals()["tell"] = lambda event: os.write(pipe, event)
    fsync = os.fsync

    def tell_first(write):
        return lambda *arguments: (tell(b"w"), write(*arguments))

    def sync_slowly(number):
        time.sleep(0.002)
        fsync(number)

    checkpoints.save_whole = tell_first(files.save_whole)
    features._compute_features = tell_first(features._compute_features)
    os.fsync = sync_slowly
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            train(*arguments)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def main(folder, kills, seed):
    torch.set_num_threads(1)
    encoders.CPU_BATCH[torch.float32] = 16  # so few events "e" that most kills come after them
    gc.freeze()  # not to be gone through by the garbage collector of each fork
    draw, folder = random.Random(seed), Path(folder)
    killed = folder / "killed.pt", folder / "checkpoints", folder / "features"
    where = [fork(draw.randint(1, 4 if n < 8 else 12), draw.uniform(0, 0.004), *killed) for n in range(kills)]
    fork(None, 0, *killed)
    fork(None, 0, folder / "whole.pt", None, folder / "other features")
    print(json.dumps("".join(where)))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
