"""A file is written whole, or what was there before stays; a mapped one does not fill the memory."""

import contextlib
import errno
import hashlib
import os
import pickle
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import SoftFileLock
from support import ROOT, resident_memory

from eecs598 import files
from eecs598.coco.datafile import load_data
from eecs598.files import LockLostError, file_lock, page_releaser, remove_partial, save_whole, write_whole

OLD, NEW = {"old": torch.arange(3)}, {"new": torch.arange(500_000)}  # 4 MB, more than torch's writer buffers


def read(path):
    return torch.load(path, weights_only=True)


def assert_only(folder, path, content):
    """The folder holds that file with that content, and nothing else: no partial file."""
    assert list(folder.iterdir()) == [path] and list(read(path)) == list(content)


class FullDisk:
    """A file that takes `room` bytes."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def write(self, content):
        self.room -= memoryview(content).nbytes
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(content)

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.file.close()


def fill_disk(monkeypatch, room):
    opened = Path.open
    monkeypatch.setattr(Path, "open", lambda path, mode="r": FullDisk(opened(path, mode), room))


@pytest.mark.parametrize("make", [str, Path])
def test_it_writes_and_replaces(tmp_path, make):
    path = tmp_path / "a.pt"
    for content in (OLD, NEW):
        save_whole(content, make(path))
        assert_only(tmp_path, path, content)


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege on Windows, and it has no named pipes")
def test_links_and_pipes_stay_what_they_are(tmp_path):
    """A link to a larger disk, and /dev/stdout, which as root could be replaced by a file."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "a.pt").symlink_to(tmp_path / "disk" / "b.pt")
    for content in (OLD, NEW):
        save_whole(content, tmp_path / "a.pt")
        assert (tmp_path / "a.pt").is_symlink()
        assert_only(tmp_path / "disk", tmp_path / "disk" / "b.pt", content)
    os.mkfifo(pipe := tmp_path / "pipe")
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_whole(pipe, lambda file: file.write(b"all of it"))
    assert os.read(reader, 100) == b"all of it" and pipe.is_fifo()
    os.close(reader)


@pytest.mark.parametrize("room", [0, 64, 1000, 1_000_000, 3_999_999])
@pytest.mark.parametrize("before", [True, False])
def test_a_full_disk(tmp_path, monkeypatch, room, before):
    """torch hides the failed write behind a RuntimeError of its own; what arrives says that the disk is full."""
    path = tmp_path / "a.pt"
    if before:
        save_whole(OLD, path)
    with monkeypatch.context() as context:
        fill_disk(context, room)
        with pytest.raises(OSError, match="No space left") as caught:
            save_whole(NEW, path)
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(path)
    if before:
        assert_only(tmp_path, path, OLD)
    else:
        assert list(tmp_path.iterdir()) == []
    save_whole(NEW, path)
    assert_only(tmp_path, path, NEW)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a device that is always full")
def test_a_device_that_is_full(tmp_path, monkeypatch):
    """The same without an imitation, as far as torch's writer and the system are concerned."""
    opened = Path.open
    monkeypatch.setattr(Path, "open", lambda path, mode="r": opened(Path("/dev/full"), mode))
    with pytest.raises(OSError) as caught:
        save_whole(NEW, tmp_path / "a.pt")
    assert caught.value.errno == errno.ENOSPC and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failure_after_the_writing(tmp_path, monkeypatch, step):
    path = tmp_path / "a.pt"
    save_whole(OLD, path)

    def fail(*args):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match=r"Input/output error.*a\.pt"):
        save_whole(NEW, path)
    assert_only(tmp_path, path, OLD)


def test_the_name_appears_only_when_everything_is_on_disk(tmp_path, monkeypatch):
    path, steps = tmp_path / "a.pt", []
    for step in ("fsync", "replace"):
        real = getattr(os, step)
        monkeypatch.setattr(os, step, lambda *args, s=step, real=real: steps.append((s, path.exists())) or real(*args))
    save_whole(NEW, path)
    assert steps == [("fsync", False), ("replace", False)] and path.exists()


def test_what_cannot_be_saved_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.pt"
    save_whole(OLD, path)
    for value in (lambda: 0, {"big": torch.arange(500_000), "code": lambda: 0}):
        with pytest.raises((pickle.PicklingError, AttributeError)):
            save_whole(value, path)
        assert_only(tmp_path, path, OLD)


def test_an_interruption_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.pt"
    save_whole(OLD, path)

    def interrupt(value, file):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_whole(NEW, path)
    assert_only(tmp_path, path, OLD)


def test_a_runtime_error_of_torch_is_told_in_one_line(tmp_path, monkeypatch):
    def fail(value, file):
        raise RuntimeError("[enforce fail] unexpected pos\nframe #0\nframe #1")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match=r"a\.pt: cannot be written \(\[enforce fail\] unexpected pos\)$"):
        save_whole(NEW, tmp_path / "a.pt")


@pytest.mark.parametrize("name", ["none/a.pt", "folder"])
def test_a_place_that_cannot_be_written(tmp_path, name):
    (tmp_path / "folder" / "inside").mkdir(parents=True)
    with pytest.raises(OSError) as caught:
        save_whole(NEW, tmp_path / name)
    assert caught.value.filename == str(tmp_path / name)
    assert list(tmp_path.iterdir()) == [tmp_path / "folder"]


def test_what_killed_processes_left_is_removed_and_what_others_write_is_not(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    gone = {f".[a].pt.{dead.pid}.part", f".b.{dead.pid}.part"}
    alive = {f".[a].pt.{os.getppid()}.part", "[a].pt", ".c.part", ".d.json.part"} if os.name != "nt" else {"[a].pt"}
    for name in gone | alive:
        (tmp_path / name).write_bytes(b"half")
    remove_partial(tmp_path, "[a].pt")
    assert {path.name for path in tmp_path.iterdir()} == alive | {f".b.{dead.pid}.part"}
    remove_partial(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == alive
    remove_partial(tmp_path / "none")


def test_another_users_process_is_running(tmp_path, monkeypatch):
    if os.name == "nt":
        pytest.skip("no process is asked there")

    def refuse(process, signal):
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    (tmp_path / ".f.4242.part").write_bytes(b"half")
    remove_partial(tmp_path)
    assert (tmp_path / ".f.4242.part").exists()


# --- mapped files -----------------------------------------------------------------------------------------

on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is measured as Linux tells it")


def mapped_megabytes():
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"RssFile:\s+(\d+)", status)[1]) / 1024


def map_file(path, megabytes=64):
    np.save(path, np.arange(megabytes * 2**17))
    return torch.from_numpy(np.load(path, mmap_mode="c"))


@on_linux
def test_what_was_read_of_a_mapped_file_leaves_memory_and_can_be_read_again(tmp_path):
    tensor = map_file(tmp_path / "numbers.npy")
    before, total = mapped_megabytes(), tensor.sum()
    assert mapped_megabytes() > before + 50
    page_releaser(tensor)()
    assert mapped_megabytes() < before + 10
    assert tensor.sum() == total == torch.arange(len(tensor)).sum()


@on_linux
def test_pictures_of_a_data_file_leave_memory_as_well(tmp_path):
    resident_memory.write_data(tmp_path / "data.pt", 2000)
    images = load_data(tmp_path / "data.pt")["train_images"]
    before, total = mapped_megabytes(), images.sum()
    assert mapped_megabytes() > before + 50
    page_releaser(images)()
    assert mapped_megabytes() < before + 10 and images.sum() == total


def test_what_was_written_to_is_never_lost(tmp_path):
    """A mapped tensor that was written to, one in memory, and parts of them."""
    written, plain = map_file(tmp_path / "numbers.npy", 32), torch.arange(2**22)
    written[70_000] = -1
    for tensor in (written, plain, written[1000:], plain[60_000:], plain[:10], plain[::2], plain[:0]):
        page_releaser(tensor)()
    assert written[70_000] == -1 and torch.equal(plain, torch.arange(2**22))


def test_small_tensors_are_not_looked_up_among_the_mappings(monkeypatch):
    """It would take up to 30 ms for each of an encoder's hundreds of weights."""
    monkeypatch.setattr(files, "_is_clean_mapping", lambda first, end: pytest.fail("it was looked up"))
    for tensor in (torch.zeros(400, 1000), torch.zeros(files.SMALL // 4), torch.zeros(0)):
        files.hash_rows(hashlib.sha256(), tensor)


@on_linux
def test_training_holds_a_small_part_of_the_data_in_memory(tmp_path):
    """docs/scaling.md has the same for 10,000 to 100,000 pictures, where the part is as large as here."""
    command = [sys.executable, ROOT / "tests" / "support" / "resident_memory.py", tmp_path, "8000"]
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=alone)
    _, pictures, features, held, _ = map(float, run.stdout.split())
    assert pictures + features > 400 and held < 150, f"{held} of {pictures} and {features} MiB are held"


# --- locks -------------------------------------------------------------------------------------------------


@pytest.fixture
def on_a_disk_without_locks(monkeypatch):
    """There filelock's locks are files, which stay when their machine is switched off."""
    monkeypatch.setattr(files, "FileLock", SoftFileLock)
    monkeypatch.setattr(files, "STALE", 1.0)


def test_the_lock_of_a_machine_that_was_switched_off_is_removed(tmp_path, on_a_disk_without_locks):
    (tmp_path / "f.lock").write_text("4242\nanother-host\n1\n")
    waited = []
    with file_lock(tmp_path / "f", "writing", lambda: waited.append(1)):
        assert 1 < len(waited) < 10
    assert not list(tmp_path.iterdir())


def test_a_lock_with_signs_of_life_is_waited_for(tmp_path, on_a_disk_without_locks, monkeypatch):
    monkeypatch.setattr(files, "STALE", 4.0)  # signs of life come six times as often, also on a busy machine
    began, order = threading.Event(), []

    def hold():
        with file_lock(tmp_path / "f", "writing"):
            began.set()
            time.sleep(5)  # longer than STALE
            order.append("first")

    holder = threading.Thread(target=hold)
    holder.start()
    began.wait()
    with file_lock(tmp_path / "f", "writing"):
        order.append("second")
    holder.join()
    assert order == ["first", "second"]


def test_a_process_that_was_stopped_learns_that_its_lock_was_taken_over(tmp_path):
    with pytest.raises(LockLostError, match=r"f: another process has begun writing it"):  # noqa: SIM117
        with file_lock(tmp_path / "f", "writing") as check:
            check()
            (tmp_path / "f.lock").unlink()
            with file_lock(tmp_path / "f", "writing") as check_other:
                check_other()
                check()
    assert not list(tmp_path.iterdir())


def test_a_lock_that_was_taken_over_is_not_removed_by_its_first_holder(tmp_path):
    with contextlib.ExitStack() as other:
        with file_lock(tmp_path / "f", "writing"):
            (tmp_path / "f.lock").unlink()
            check = other.enter_context(file_lock(tmp_path / "f", "writing"))
        check()


@pytest.mark.parametrize("name", ["x" * 250, "\N{GREEK SMALL LETTER ALPHA}" * 125, "a"])
def test_names_as_long_as_the_file_system_allows_are_written(tmp_path, name):
    write_whole(tmp_path / name, lambda file: file.write(b"new"))
    assert [path.name for path in tmp_path.iterdir()] == [name] and (tmp_path / name).read_bytes() == b"new"
    start = os.fsencode(name)[:200].decode()
    part = tmp_path / f".{start}.{2**22 + 1}.part"  # of no process: the largest number of one is less
    part.write_bytes(b"half")
    remove_partial(tmp_path, name)
    assert not part.exists()
