"""Files that are written whole or not at all."""

import contextlib
import os
from pathlib import Path

import torch


def save_whole(value, path):
    """torch.save `value` to `path`, whole or not at all: see `write_whole`."""
    write_whole(path, lambda file: torch.save(value, file))


def write_whole(path, write):
    """`write(file)`, a binary file of a temporary name beside `path`, which is flushed and only then renamed.

    A failure leaves what was there before and no partial file. Raises OSError, which names `path`.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except (OSError, RuntimeError) as error:
        # After a failed write, as on a full disk, torch's writer raises a RuntimeError of its own over it.
        cause = error if isinstance(error, OSError) else error.__context__
        if isinstance(cause, OSError) and cause.errno:
            raise OSError(cause.errno, cause.strerror, str(path)) from None
        raise OSError(f"{path}: cannot be written ({str(error).splitlines()[0]})") from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
