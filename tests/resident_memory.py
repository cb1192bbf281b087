"""How much memory training holds, as the data grow: one epoch, from a data file whose pictures are mapped.

    python tests/resident_memory.py FOLDER N...

Prints, for each number N of pictures of 112 x 112, the mebibytes of the file and those that the process came to hold
above what it held before: in all, and of them what the system could take back at once, as it is a mapped file's.
The file is sparse: it takes no room on the disk, but is read as any other. Each N runs in a process of its own.
"""

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from eecs598 import encoders, solver

KINDS = ("VmRSS", "RssFile")


def held():
    """Mebibytes by kind."""
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return [int(lines[kind].split()[0]) / 1024 for kind in KINDS]


class Model(torch.nn.Module):
    """Reads every number of its pictures, and learns next to nothing."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))
        self.out_channels = 3

    def forward(self, images, captions=None):
        colours = torch.nn.functional.adaptive_avg_pool2d(images.float(), 2)
        return colours if captions is None else (colours * self.weight[:, None, None]).sum() + captions.sum()


def measure(folder, count):
    """Features of all pictures are computed and kept, then an epoch reads the pictures in a random order."""
    path = Path(folder) / f"pictures-{count}.npy"
    np.lib.format.open_memmap(path, "w+", np.uint8, (count, 3, 112, 112)).flush()
    images = torch.from_numpy(np.load(path, mmap_mode="c"))
    captions = torch.zeros(count, 3, dtype=torch.int64)
    train(images[:1000].clone(), captions[:1000])  # what torch takes once and for all
    before, most, done = held(), [0, 0], threading.Event()

    def watch():
        while not done.wait(0.005):
            most[:] = map(max, most, held())

    watcher = threading.Thread(target=watch)
    watcher.start()
    encoders.cached_features(Model().requires_grad_(False), images, folder, progress=False)
    train(images, captions)
    done.set()
    watcher.join()
    print(count, *(f"{size:.0f}" for size in (images.nbytes / 2**20, *(a - b for a, b in zip(most, before)))))


def train(images, captions):
    solver.train(Model(), images, captions, num_epochs=1, batch_size=64, learning_rate=1e-3, progress=False)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        measure(sys.argv[1], int(sys.argv[2]))
    else:
        for number in sys.argv[2:]:
            subprocess.run([sys.executable, __file__, sys.argv[1], number], check=True)
