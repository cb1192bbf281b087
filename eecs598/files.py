"""Files that are written whole or not at all, by one process at a time; and mapped ones that do not fill memory."""

import contextlib
import ctypes
import itertools
import mmap
import os
import sys
import threading
import time
from pathlib import Path

import torch
from filelock import FileLock, Timeout

# For whoever waits in `taking_turns`: on some disks a machine that was switched off leaves its lock behind.
STALE_LOCK = "If no such process is running, remove {}.lock"
STALE = 60.0  # seconds without a sign of life, after which a lock is taken for such a one


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


def page_releaser(tensor):
    """A function that takes what was read of a tensor, mapped from a file, out of this process's memory.

    No value changes, and the system may still hold the file in its cache, which gives way to whatever needs memory.
    But a process that reads here and there in a large file soon has all of it in its own memory: with each value come
    up to 2 MiB around it. Nothing is done on other systems than Linux, nor for a tensor that is not mapped or was
    written to before; while the function is in use, the tensor must not be written to.
    """
    first = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    length = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE - first
    mapped = tensor.device.type == "cpu" and tensor.is_contiguous() and length > 0
    if not (sys.platform.startswith("linux") and mapped and _is_clean_mapping(first, first + length)):
        return lambda: None
    where = ctypes.c_void_p(first), ctypes.c_size_t(length)
    return lambda: ctypes.CDLL(None).madvise(*where, mmap.MADV_DONTNEED)


def _is_clean_mapping(first, end):
    """Whether these addresses are all of one mapped file, and nothing there differs from the file."""
    inside = False
    with contextlib.suppress(OSError), open("/proc/self/smaps") as smaps:
        for line in smaps:
            if inside and line.startswith("Anonymous:"):
                return line.split()[1] == "0"
            addresses, _, rest = line.partition(" ")
            if "-" in addresses:
                low, high = (int(edge, 16) for edge in addresses.split("-"))
                inside = low <= first and end <= high and rest.split()[3] != "0"
    return False


@contextlib.contextmanager
def taking_turns(path, while_waiting):
    """Inside, no other process or thread, also on another machine with the same disk, is in such a block for `path`.

    while_waiting(attempt), the attempts counted from 0, is called twice a second while another one is. A lock that has
    shown no sign of life for STALE seconds is removed. Raises OSError.
    """
    name = path.with_name(path.name + ".lock")
    lock, last_sign, since = FileLock(name), None, time.monotonic()
    for attempt in itertools.count():
        try:
            lock.acquire(timeout=0.5)
            break
        except Timeout:
            while_waiting(attempt)
        sign = _modified(name)
        if sign != last_sign:
            last_sign, since = sign, time.monotonic()
        elif time.monotonic() - since > STALE:
            _remove(name)
    try:
        with _signs_of_life(name):
            yield
    finally:
        # Removed while it is held; whoever waits for it notices. On Windows, release() removes it.
        _remove(name)
        lock.release()


@contextlib.contextmanager
def _signs_of_life(name):
    """Inside, the file's time of modification moves on."""
    done = threading.Event()

    def touch():
        while not done.wait(STALE / 6):
            with contextlib.suppress(OSError):
                os.utime(name)

    thread = threading.Thread(target=touch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _modified(name):
    try:
        return name.stat().st_mtime_ns
    except OSError:
        return None


def _remove(name):
    with contextlib.suppress(OSError):
        name.unlink()
