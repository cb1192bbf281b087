"""A disk that is full."""

import contextlib
from pathlib import Path


def fill(folder):
    """Leave no room on the folder's disk. Returns the file that takes it."""
    with (folder / "everything else").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1024))
    return Path(file.name)
