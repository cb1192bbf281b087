"""How much memory training holds, as the data grow: an epoch on a data file's pictures, and one on their features.

    python tests/support/resident_memory.py FOLDER N...

Prints, for each number N of pictures of 112 x 112, mebibytes: of the data file, of the features' file, and those that
the process came to hold above what it held before, in all, and of them what the system could take back at once, as it
is a mapped file's. Each N runs in a process of its own, and its files are removed.
"""

import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import torch

sys.path[:0] = map(str, Path(__file__).resolve().parents[1:3])
from eecs598.coco.datafile import load_data
from eecs598.features import cached_features
from eecs598.training import checkpoints, solver
from eecs598.training.options import Options

KINDS = ("VmRSS", "RssFile")


def held():
    """Mebibytes by kind."""
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return [int(lines[kind].split()[0]) / 1024 for kind in KINDS]


class Model(torch.nn.Module):
    """Reads every number of its pictures, or features, and learns next to nothing."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))

    def forward(self, images, captions):
        return (images.float().mean((2, 3)) * self.weight).mean()


class Encoder(torch.nn.Module):
    """Features of 19 kB a picture, half as much as the picture itself."""

    out_channels = 3

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.full((), 1 / 255), requires_grad=False)

    def forward(self, images):
        return torch.nn.functional.avg_pool2d(images.float() * self.scale, 2)


def write_data(path, count):
    """A data file of noise; `save_data` would want all of it in memory."""
    raw = path.with_suffix(".raw")
    noise = np.random.default_rng(0).integers(0, 256, (1000, 3, 112, 112), np.uint8)
    with raw.open("wb") as file:
        for start in range(0, count, 1000):
            file.write(noise[: count - start])
    words = ["<NULL>", "<START>", "<END>", "<UNK>", "a"]
    vocab = {"idx_to_token": words, "token_to_idx": {word: i for i, word in enumerate(words)}}
    images = torch.from_numpy(np.memmap(raw, np.uint8, "c", shape=(count, 3, 112, 112)))
    captions = torch.tensor([1, 4, 2] + [0] * 14).expand(count, 17).contiguous()
    torch.save({"train_images": images, "train_captions": captions, "val_images": torch.from_numpy(noise[:10]),
                "val_captions": captions[:10].clone(), "vocab": vocab}, path)  # fmt: skip
    raw.unlink()


def measure(folder, count):
    """Features of all pictures are computed and kept; then an epoch on the pictures, and one on the features."""
    path = Path(folder) / "data.pt"
    subprocess.run([sys.executable, __file__, "write", str(path), str(count)], check=True)
    data = load_data(path)
    images, captions = data["train_images"], data["train_captions"].clone()
    train(images[:1000].clone(), captions[:1000])  # what torch takes once and for all
    before, most, done = held(), [0, 0], threading.Event()

    def watch():
        while not done.wait(0.005):
            most[:] = map(max, most, held())

    watcher = threading.Thread(target=watch)
    watcher.start()
    checkpoints.identify_data(images, captions)
    train(images, captions)
    features = cached_features(Encoder(), images, folder, progress=False)
    train(features, captions)
    done.set()
    watcher.join()
    sizes = images.nbytes / 2**20, features.nbytes / 2**20, *(a - b for a, b in zip(most, before))
    print(count, *(f"{size:.0f}" for size in sizes))


def train(images, captions):
    solver.train(Model(), images, captions, num_epochs=1, batch_size=64, learning_rate=1e-3,
                 options=Options(progress=False))  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write_data(Path(sys.argv[2]), int(sys.argv[3]))
    elif sys.argv[1] == "measure":
        measure(sys.argv[2], int(sys.argv[3]))
    else:
        for number in sys.argv[2:]:
            with tempfile.TemporaryDirectory(dir=sys.argv[1]) as place:
                subprocess.run([sys.executable, __file__, "measure", place, number], check=True)
