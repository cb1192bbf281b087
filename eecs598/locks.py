"""Processes that make the same file take turns."""

import contextlib
import itertools

from filelock import FileLock, Timeout


@contextlib.contextmanager
def taking_turns(path, while_waiting):
    """Inside, no other process or thread, also on another machine with the same disk, is in such a block for `path`.

    while_waiting(attempt), the attempts counted from 0, is called twice a second while another one is. Raises OSError.
    """
    name = path.with_name(path.name + ".lock")
    lock = FileLock(name)
    for attempt in itertools.count():
        try:
            lock.acquire(timeout=0.5)
            break
        except Timeout:
            while_waiting(attempt)
    try:
        yield
    finally:
        # Removed while it is held; whoever waits for it notices. On Windows, release() removes it.
        with contextlib.suppress(OSError):
            name.unlink()
        lock.release()
