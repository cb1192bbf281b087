"""Atomic writes, a lock between processes and machines, and memory-mapped files that do not fill memory."""

import contextlib
import ctypes
import glob
import itertools
import mmap
import os
import sys
import threading
import time
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from eecs598.progress import late_bar, say

# Shown while `file_lock` waits: on some disks, a machine that was switched off leaves its lock behind.
STALE_LOCK = "If no such process is running, remove {}.lock"
STALE = 60.0  # seconds without a heartbeat after which a lock is considered stale
SMALL = 16 * 2**20  # bytes that may stay resident: finding out whether they are mapped takes up to 30 ms


def save_whole(value, path):
    """torch.save `value` to `path` atomically, see `write_whole`."""

    def save(file):
        try:
            torch.save(value, file)
        except RuntimeError as error:  # torch's own, after a failed write, as on a full disk
            reason = str(error).partition("\n")[0]
            raise error.__context__ if isinstance(error.__context__, OSError) else OSError(reason) from None

    write_whole(path, save)


def write_whole(path, write):
    """Write a file atomically: `write(file)` fills a temporary binary file beside `path`, which is then renamed.

    If `path` is a link, the file that it points to is replaced. A device or pipe, such as /dev/stdout, is written to
    directly. After a failure the old file is still there, and no partial one. Raises an OSError that names `path`;
    other errors of `write` are raised as they are.
    """
    path = Path(path)
    if path.exists() and not (path.is_file() or path.is_dir()):
        with path.open("wb") as file:
            return write(file)
    target = Path(os.path.realpath(path))
    part = target.with_name(f"{_start_of_partial(target.name)}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, target)
    except OSError as error:
        if error.errno:
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise OSError(f"{path}: cannot be written ({error})") from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def write_text(path, text, errors="strict"):
    """Write text as UTF-8 atomically, see `write_whole`."""
    write_whole(path, lambda file: file.write(text.encode(errors=errors)))


def remove_partial(folder, name="*"):
    """Remove what killed processes have left of files that `write_whole` began in a folder: of those with this name."""
    start = ".*" if name == "*" else glob.escape(_start_of_partial(name))
    for path in Path(folder).glob(f"{start}.*.part"):
        process = path.suffixes[-2][1:]
        if process.isdecimal() and not _is_running(int(process)):
            remove(path)


def _start_of_partial(name):
    return "." + shorten_name(name, 200)  # most file systems allow 255 bytes


def shorten_name(name, length):
    """The beginning of a file name, in at most `length` bytes of UTF-8."""
    return os.fsencode(name)[:length].decode(errors="ignore")


def _is_running(process):
    """Whether the process with this id is running. Always False on Windows, where open files cannot be removed."""
    if os.name == "nt":  # os.kill would end it
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def page_releaser(tensor):
    """A function that releases the resident pages of a memory-mapped tensor.

    No value changes, and the pages may stay in the system's page cache, which yields to other needs. Without this, a
    process that reads a large file at random soon has all of it resident, as each access maps up to 2 MiB around it.
    The function does nothing except on Linux, nor for a tensor of at most SMALL bytes or one that is not mapped or has
    been written to. While it is in use, the tensor must not be written to.
    """
    first = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    length = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE - first
    mapped = tensor.device.type == "cpu" and tensor.is_contiguous() and length > SMALL
    if not (sys.platform.startswith("linux") and mapped and _is_clean_mapping(first, first + length)):
        return lambda: None
    where = ctypes.c_void_p(first), ctypes.c_size_t(length)
    return lambda: ctypes.CDLL(None).madvise(*where, mmap.MADV_DONTNEED)


def _is_clean_mapping(first, end):
    """Whether this address range lies in a single mapping of a file and has no modified pages."""
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


def hash_rows(digest, tensor):
    """Update a hashlib digest with a tensor's values, at about 1 GB/s. A memory-mapped file is not kept resident."""
    tensor = torch.atleast_1d(tensor.detach())
    release_pages = page_releaser(tensor)
    with late_bar(len(tensor), "hashing", "row") as bar:
        for rows in tensor.split(256):
            digest.update(rows.cpu().contiguous().flatten().view(torch.uint8).numpy())
            bar.update(len(rows))
            release_pages()


class LockLostError(Exception):
    """Another process has taken over a lock of this one, which had no heartbeat for too long."""


@contextlib.contextmanager
def file_lock(path, doing, while_waiting=None):
    """A context that holds the lock for `path`, exclusive among threads, processes and machines that share the disk.

    While the lock is held elsewhere, a line says that another process is `doing` the file, such as "computing", and
    while_waiting() is called twice a second. A lock without a heartbeat for STALE seconds is removed. So this process
    may lose it, as when the computer sleeps. Yields a function that then raises LockLostError. Raises OSError.
    """
    name = path.with_name(path.name + ".lock")
    lock, last_beat, since = FileLock(name), None, time.monotonic()
    for attempt in itertools.count():
        try:
            lock.acquire(timeout=0.5)
            break
        except Timeout:
            if attempt == 0:
                say(f"{path}: waiting for another process that is {doing} it. {STALE_LOCK.format(path)}")
            if while_waiting:
                while_waiting()
        beat = _modified(name)
        if beat != last_beat:
            last_beat, since = beat, time.monotonic()
        elif time.monotonic() - since > STALE:
            remove(name)
    own = _identify(name)

    def check():
        if _identify(name) != own:
            raise LockLostError(f"{path}: another process has begun {doing} it, as this one was stopped for too long")

    try:
        with _heartbeat(name):
            yield check
    finally:
        # Removed while it is held, which those who wait notice. On Windows, release() removes it.
        if _identify(name) == own:
            remove(name)
        lock.release()


@contextlib.contextmanager
def _heartbeat(name):
    """A context in which the file's modification time is updated regularly."""
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


def _identify(name):
    """The device and inode of a file, or None."""
    try:
        found = name.stat()
        return found.st_dev, found.st_ino
    except OSError:
        return None


def _modified(name):
    try:
        return name.stat().st_mtime_ns
    except OSError:
        return None


def remove(name):
    """Delete a file if it is there and can be deleted."""
    with contextlib.suppress(OSError):
        name.unlink()
