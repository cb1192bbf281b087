"""Downloads from a server that misbehaves on purpose: the right file or a clear error, never in between."""

import contextlib
import errno
import hashlib
import io
import itertools
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
import time
import zipfile

import pytest
import requests
from support import ROOT
from support.faulty_server import FAULTS, serve, unused_port

from eecs598.coco import download as module
from eecs598.coco.datafile import check_whole
from eecs598.coco.download import DownloadError, download, fetch_many, find_answering
from eecs598.files import file_lock

FAST = {"progress": False, "timeout": 20, "backoff": 0.0005}
IMPATIENT = {**FAST, "timeout": 0.3}  # seconds to wait for a byte, where the server sends none


def make_zip(seed, length):
    """The bytes of a zip archive with `length` random bytes in it."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(zipfile.ZipInfo("random"), random.Random(seed).randbytes(length))
    return stream.getvalue()


CONTENT, NEXT_CONTENT = make_zip(1, 30_000), make_zip(2, 41_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(scope="module")
def add():
    with serve(patience=30) as add_file:
        yield add_file


@pytest.fixture(autouse=True)
def small_scale(monkeypatch):
    """Chunks that are small against the test files."""
    monkeypatch.setattr(module, "CHUNK", 1024)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file.zip"


def get_error(*arguments, **options):
    """The error of a download that has to fail; its message is one line."""
    with pytest.raises(DownloadError) as caught:
        download(*arguments, **{**FAST, **options})
    message = str(caught.value)
    assert "\n" not in message and ";" in message and len(message) > 20
    assert message.endswith(module.ADVICE[caught.value.reason])
    return caught.value


def assert_whole(path, *contents):
    """The folder holds that file, with one of those contents, and no litter."""
    assert path.read_bytes() in contents
    assert [other.name for other in path.parent.iterdir()] == [path.name]


def interrupted(remote, path, stop_after):
    """Download as far as `stop_after` bytes, then stop as for Ctrl-C; the part is left."""
    real = module.tqdm.update

    def update(bar, n=1):
        real(bar, n)
        if path.with_name(path.name + ".part").stat().st_size >= stop_after:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module.tqdm, "update", update)
        download(remote.url, path, **FAST)


# --- a server in good health --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "known", [{}, {"size": len(CONTENT)}, {"sha256": SHA256.upper()}, {"check": check_whole}]
)
def test_a_file_arrives_once(add, path, known, monkeypatch):
    remote = add("plain", CONTENT)
    assert download(remote.url, str(path), **known, **FAST) == path
    assert_whole(path, CONTENT)
    monkeypatch.setattr(module, "file_lock", None)  # not needed again: the folder may be read-only by now
    download(remote.url, path, **known, **FAST)
    assert len(remote.requests) == 1


@pytest.mark.parametrize("known", [{"size": len(CONTENT)}, {"sha256": SHA256}, {"check": check_whole}])
def test_a_wrong_file_is_replaced(add, path, known):
    path.write_bytes(CONTENT[:-1])
    download([add("wrong", CONTENT).url], path, **known, **FAST)
    assert_whole(path, CONTENT)


@pytest.mark.parametrize(
    ("style", "answers"),
    [("compressed", [200]), ("chunked", [200]), ("no_length", [200]), ("redirect", [302, 200])],
)
@pytest.mark.parametrize("known", [{}, {"size": len(CONTENT)}])
def test_a_file_arrives_at_once_in_whatever_style_it_is_sent(add, path, style, answers, known):
    remote = add(style, CONTENT, faults=[style])
    download(remote.url, path, **known, **FAST)
    assert remote.answers == answers
    assert_whole(path, CONTENT)


def test_folders_are_made(add, tmp_path):
    path = tmp_path / "a" / "b" / "file.zip"
    download(add("new", CONTENT).url, path, **FAST)
    assert_whole(path, CONTENT)


def test_the_bar_counts_bytes(add, path, capsys):
    interrupted(add("bar", CONTENT), path, 9_000)
    capsys.readouterr()
    download(add("bar", CONTENT).url, path, **{**FAST, "progress": True})
    shown = capsys.readouterr()
    assert not shown.out and "file.zip: 100%" in shown.err and "B/s" in shown.err
    assert "29.4k/29.4k" in shown.err and shown.err.endswith("\n")
    download(add("bar", CONTENT).url, path, **{**FAST, "progress": True})  # there already
    assert not capsys.readouterr().err


# --- fault schedules ----------------------------------------------------------------------------------------

SEEDS = 150
UNDETECTABLE = {  # by what is known of the file: faults that nobody could tell from the file
    "sha256": set(),
    "check": set(),
    "size": {"damaged"},
    "nothing": {"damaged", "too_short", "no_length_and_drop", "endless"},
}
CHANGES = {"change", "change_and_drop"}


def draw_schedule(seed):
    """What is known of the file, and options of the remote file with up to 12 faults in a row."""
    rng = random.Random(seed)
    known = rng.choice(list(UNDETECTABLE))
    allowed = sorted(
        FAULTS.keys() - UNDETECTABLE[known] - (CHANGES if known in ("sha256", "size") else set())
    )
    weights = [0.15 if name in ("stall", "silent") else 1 for name in allowed]  # those take long
    faults = rng.choices(allowed, weights, k=rng.randrange(1, 13))
    validators = rng.choice(["etag", "weak", "date", "none"])
    return known, {"faults": faults, "validators": validators, "seed": seed, "next_content": NEXT_CONTENT}


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_fault_schedule_ends_well(add, path, seed):
    known, remote_options = draw_schedule(seed)
    remote = add(f"schedule{seed}", CONTENT, **remote_options)
    options = {
        "sha256": {"sha256": SHA256},
        "check": {"check": check_whole},
        "size": {"size": len(CONTENT)},
    }.get(known, {}) | (IMPATIENT if {"stall", "silent"} & set(remote.faults) else FAST)
    urls = [f"http://127.0.0.1:{unused_port()}/gone", remote.url] if seed % 10 == 0 else remote.url
    for _ in range(20):  # calls, each of which uses up one fault at least
        if not remote.faults:
            break
        try:
            download(urls, path, retries=3, **options)
        except DownloadError as error:
            assert "\n" not in str(error) and str(error).endswith(module.ADVICE[error.reason])
            assert not path.exists() and not path.with_name("file.zip.lock").exists()
        else:
            assert_whole(path, *remote.versions)
            path.unlink()
    assert not remote.faults
    download(remote.url, path, **options)
    assert_whole(path, *remote.versions)


def test_schedules_meet_every_fault():
    drawn = [draw_schedule(seed) for seed in range(SEEDS)]
    met = {name for _, options in drawn for name in options["faults"]}
    assert met == FAULTS.keys() and {known for known, _ in drawn} == UNDETECTABLE.keys()


# --- resuming -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("validators", ["etag", "weak", "date"])
def test_an_interrupted_download_goes_on_where_it_stopped(add, path, validators, capsys):
    remote = add("resume", CONTENT, validators=validators)
    interrupted(remote, path, 12_000)
    kept = path.with_name("file.zip.part").read_bytes()
    assert 12_000 <= len(kept) < len(CONTENT) and CONTENT.startswith(kept)
    assert "file.zip.part" in capsys.readouterr().err and not path.exists()
    download(remote.url, path, **FAST)
    assert remote.requests == [None, f"bytes={len(kept)}-"] and remote.answers == [200, 206]
    assert_whole(path, CONTENT)


@pytest.mark.parametrize("validators", ["etag", "weak", "date", "none"])
def test_versions_are_never_joined(add, path, validators):
    remote = add("changed", CONTENT, validators=validators)
    interrupted(remote, path, 12_000)
    remote.versions.append(NEXT_CONTENT)
    download(remote.url, path, **FAST)
    assert len(remote.requests) == 2  # the server was told the condition, and so sent the whole file
    assert_whole(path, NEXT_CONTENT)


def test_versions_are_never_joined_where_the_condition_is_ignored(add, path, monkeypatch):
    remote = add("unconditional", CONTENT)
    interrupted(remote, path, 12_000)
    remote.versions.append(NEXT_CONTENT[: len(CONTENT)])  # the same length: only the ETag tells
    monkeypatch.setattr(
        "support.faulty_server.Handler.start", lambda self: int(self.headers.get("Range", "bytes=0-")[6:-1])
    )
    download(remote.url, path, **FAST)
    assert_whole(path, NEXT_CONTENT[: len(CONTENT)])


@pytest.mark.parametrize("fault", ["wrong_range", "other_total", "no_range_header", "error_416"])
def test_an_answer_that_does_not_fit_starts_over_and_later_drops_resume(add, path, fault):
    remote = add(fault, CONTENT, faults=["drop", fault, "drop"], seed=3)
    download(remote.url, path, **FAST)
    assert [bool(asked) for asked in remote.requests] == [False, True, False, True]
    assert remote.answers == [200, 416 if "416" in fault else 206, 200, 206]
    assert_whole(path, CONTENT)


@pytest.mark.parametrize("calls", [1, 2])
def test_a_wrong_mixture_is_fetched_anew(add, path, calls):
    """Without validators a part is continued only if a check will tell, and then the check does."""
    changed = bytes(len(CONTENT))
    faults = ["drop", "change"] if calls == 1 else ["healthy", "change"]
    remote = add("mixture", CONTENT, faults, validators="none", next_content=changed, seed=3)
    if calls == 2:
        interrupted(remote, path, 12_000)
    download(remote.url, path, sha256=hashlib.sha256(changed).hexdigest(), **FAST)
    assert remote.answers == [200, 206, 200]
    assert_whole(path, changed)


def test_a_part_is_continued_from_a_mirror(add, path):
    first = add("first", CONTENT, faults=["drop", *["error_503"] * 9], seed=3)
    second = add("second", CONTENT)
    download([first.url, second.url], path, **FAST)
    assert second.requests == [first.requests[-1]] != [None]
    assert_whole(path, CONTENT)


def test_a_part_outlives_web_pages_errors_and_silence(add, path):
    remote = add(
        "outlives", CONTENT, faults=["healthy", "web_page", "web_page_in_disguise", "error_404", "silent"]
    )
    interrupted(remote, path, 12_000)
    part = path.with_name("file.zip.part")
    kept = part.read_bytes()
    reasons = [get_error(remote.url, path, retries=0, timeout=IMPATIENT["timeout"]).reason for _ in range(4)]
    assert reasons == ["web page", "web page", "missing", "server"] and part.read_bytes() == kept
    download(remote.url, path, **FAST)
    assert remote.requests[-1] == f"bytes={len(kept)}-"
    assert_whole(path, CONTENT)


def test_a_drop_is_noticed_by_the_size_alone(add, path):
    remote = add("unannounced", CONTENT, faults=["no_length_and_drop"], seed=3)
    download(remote.url, path, size=len(CONTENT), **FAST)
    assert len(remote.requests) == 2 and remote.requests[1] is not None
    assert_whole(path, CONTENT)


def leave_complete_part(remote, path):
    """As when the process ends between the last byte and the renaming."""

    def end(task):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "_finish", end)
        download(remote.url, path, **FAST)


def test_a_complete_part_needs_no_server(add, path):
    leave_complete_part(add("complete", CONTENT), path)
    download(f"http://127.0.0.1:{unused_port()}/", path, **FAST)
    assert_whole(path, CONTENT)


def test_a_complete_part_of_untold_length_is_recognized(add, path):
    remote = add("untold", CONTENT, faults=["no_length"])
    leave_complete_part(remote, path)
    download(remote.url, path, **FAST)
    assert remote.answers == [200, 416]
    assert_whole(path, CONTENT)


@pytest.mark.parametrize(("chunk", "answer"), [(1, 416), (1024, 206)])  # the rest of a last chunk is lost
def test_a_server_that_contradicts_itself_on_the_length_is_asked_again(add, path, monkeypatch, chunk, answer):
    monkeypatch.setattr(module, "CHUNK", chunk)
    remote = add("contradicts", CONTENT, faults=["too_long"])
    download(remote.url, path, **FAST)
    assert remote.answers == [200, answer, 200]
    assert_whole(path, CONTENT)


@pytest.mark.parametrize(
    "note", [None, "", "{", "[]", '{"etag": 1}', '{"etag": null, "modified": null, "length": 9}']
)
def test_a_part_of_unknown_origin_is_not_used(add, path, note):
    path.with_name("file.zip.part").write_bytes(b"from elsewhere")
    if note is not None:
        path.with_name("file.zip.part.json").write_text(note)
    download(add("unknown", CONTENT).url, path, sha256=SHA256, **FAST)
    assert_whole(path, CONTENT)


def test_progress_renews_the_patience(add, path):
    """A line that drops more often than `retries`, but brings something each time, still ends well."""
    remote = add("bad_line", CONTENT, faults=["drop"] * 6, seed=5)
    download(remote.url, path, retries=1, **FAST)
    assert_whole(path, CONTENT)
    starts = [int(asked[6:-1]) for asked in remote.requests[1:]]
    assert len(starts) == 6 and starts == sorted(set(starts))


# --- retries and their limits -------------------------------------------------------------------------------


@pytest.fixture
def pauses(monkeypatch):
    """The pauses that downloads make, which take no time."""
    made, real = [], threading.Event.wait

    def wait(event, timeout=None):
        if timeout is None or threading.current_thread() is not threading.main_thread():
            return real(event, timeout)
        made.append(timeout)
        return False

    monkeypatch.setattr(threading.Event, "wait", wait)
    return made


def test_pauses_double_and_attempts_end(add, path, pauses):
    remote = add("always_500", CONTENT, faults=["error_500"] * 99)
    error = get_error(remote.url, path, retries=5, backoff=1)
    assert error.reason == "server" and "500" in str(error) and len(remote.requests) == 6
    assert pauses[0] == 0 and len(pauses) == 5
    assert all(2**n <= pause <= 2**n + 1 for n, pause in enumerate(pauses[1:], start=1))


def test_pauses_are_told(add, path, pauses, capsys):
    busy = add("told", CONTENT, faults=["error_500"] * 2)
    download(busy.url, path, **{**FAST, "progress": True, "backoff": 1})
    assert "answers 500 Internal Server Error; next attempt in" in capsys.readouterr().err
    busy.faults = ["error_500"] * 9
    get_error(busy.url, path.with_name("other"), progress=True, backoff=1, retries=2)
    assert capsys.readouterr().err.endswith("\n")
    with pytest.raises(DownloadError):  # told soon: nothing to show
        download(f"http://127.0.0.1:{unused_port()}/", path.with_name("other"), **{**FAST, "progress": True})
    assert not capsys.readouterr().err


def test_no_pause_goes_beyond_the_time_allowed(add, path, monkeypatch):
    def asked(handler):
        handler.reply(429, b"", ("Retry-After", "60"))

    monkeypatch.setitem(FAULTS, "asked", asked)
    remote, began = add("busy", CONTENT, faults=["asked"] * 3), time.monotonic()
    error = get_error(remote.url, path, deadline=began + 0.5, retries=3)
    assert time.monotonic() - began < 20 and error.reason == "stopped"


def test_retry_after_is_honoured_up_to_a_limit(add, path, pauses, monkeypatch):
    def asked(handler):
        handler.reply(429, b"", ("Retry-After", "7"))

    monkeypatch.setitem(FAULTS, "asked", asked)
    remote = add("busy", CONTENT, faults=["asked"] * 3)
    download(remote.url, path, **FAST)
    assert len(pauses) == 3 and all(pause == 7 for pause in pauses)
    path.unlink()
    monkeypatch.setattr(module, "RETRY_AFTER_LIMIT", 6)
    remote.faults = ["asked"]
    assert "asks to wait for 7 s" in str(get_error(remote.url, path))


@pytest.mark.parametrize(
    ("name", "reason", "words"),
    [
        ("error_404", "missing", "answers 404"),
        ("web_page", "web page", "web page"),
        ("web_page_in_disguise", "web page", "web page"),
        ("empty", "content", "empty"),
        ("silent", "server", "silent for 0.3 s"),
        ("hang_up", "server", "drops the connection"),
        ("compressed_and_damaged", "server", "compressed"),
        ("redirect", "missing", "too many redirects"),
        ("error_500", "server", "answers 500"),
    ],
)
def test_errors_say_what_is_wrong_and_the_next_call_succeeds(add, path, name, reason, words):
    remote = add(name, CONTENT, faults=[name] * 40)
    error = get_error(remote.url, path, retries=1, **(IMPATIENT if name == "silent" else {}))
    assert error.reason == reason and words in str(error) and remote.url in str(error)
    remote.faults.clear()
    download(remote.url, path, **FAST)
    assert_whole(path, CONTENT)


@pytest.mark.parametrize("known", [{"sha256": SHA256}, {"check": check_whole}])
def test_damaged_content_is_deleted(add, path, known):
    remote = add("damaged", CONTENT, faults=["damaged"])
    error = get_error(remote.url, path, **known)
    assert error.reason == "content" and "fails its check" in str(error)
    assert not list(path.parent.iterdir())
    download(remote.url, path, **known, **FAST)
    assert_whole(path, CONTENT)


def test_another_size_than_wanted_is_not_fetched(add, path):
    error = get_error(add("size", CONTENT).url, path, size=1_000)
    assert error.reason == "content" and f"has a file of {len(CONTENT):,} bytes, wanted 1,000" in str(error)
    assert not list(path.parent.iterdir())


def test_more_than_the_size_is_cut_short(add, path):
    remote = add("endless", CONTENT, faults=["endless"])
    error = get_error(remote.url, path, size=len(CONTENT), retries=0)
    assert error.reason == "content" and "sends more than" in str(error)
    download(remote.url, path, size=len(CONTENT), **FAST)
    assert_whole(path, CONTENT)


def test_mirrors_are_tried_in_order(add, path):
    gone, page, good, spare = (add(name, CONTENT) for name in ("gone", "page", "good", "spare"))
    gone.faults, page.faults = ["error_404"], ["web_page"]
    download([gone.url, page.url, good.url, spare.url], path, **FAST)
    assert [len(remote.requests) for remote in (gone, page, good, spare)] == [1, 1, 1, 0]
    assert_whole(path, CONTENT)
    gone.faults, page.faults = ["error_404"], ["error_404"]
    error = get_error([gone.url, page.url], path.with_name("other"))
    assert error.reason == "missing" and gone.url in str(error) and page.url in str(error)


@pytest.mark.parametrize(
    ("url", "reason", "words"),
    [
        (f"http://127.0.0.1:{unused_port()}/file", "network", "refused"),
        ("http://no-such-host.invalid/file", "network", "name"),
        ("ftp://127.0.0.1/file", "missing", "not a valid address"),
        ("file.zip", "missing", "not a valid address"),
        ([], "missing", "no address"),
    ],
    ids=["refused", "no such host", "ftp", "no scheme", "none"],  # the same in every process: a port is not
)
def test_unreachable_addresses(path, url, reason, words, monkeypatch):
    def resolve(host, *given, real=socket.getaddrinfo, **more):
        if host.endswith(".invalid"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return real(host, *given, **more)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    error = get_error(url, path)
    assert error.reason == reason and words in str(error) and not path.exists()


def test_a_server_without_encryption_is_refused(add, path):
    error = get_error(add("plainly", CONTENT).url.replace("http:", "https:"), path)
    assert error.reason == "network" and "secure connection" in str(error)


def test_a_missing_network_is_told_soon_but_not_in_the_middle(add, path, pauses):
    get_error(f"http://127.0.0.1:{unused_port()}/file", path, retries=9)
    assert len(pauses) == 1
    remote = add("cut_off", CONTENT, faults=["drop"], seed=3)
    real, calls = requests.Session.get, itertools.count()

    def get(session, url, **options):
        return real(
            session, url if next(calls) in (0, 6) else f"http://127.0.0.1:{unused_port()}/", **options
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(requests.Session, "get", get)
        download(remote.url, path, retries=6, **FAST)
    assert_whole(path, CONTENT)


# --- the local side -----------------------------------------------------------------------------------------


def test_a_full_disk_is_told_before_the_download(add, path, monkeypatch):
    monkeypatch.setattr(
        shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6, len(CONTENT) - 1)
    )
    remote = add("full", CONTENT)
    error = get_error([remote.url, remote.url], path)
    assert error.reason == "space" and "MiB are free" in str(error) and len(remote.requests) == 1
    assert not list(path.parent.iterdir())


def test_a_disk_that_fills_up_keeps_the_part(add, path, monkeypatch):
    real = module.tqdm.update

    def update(bar, n=1):
        real(bar, n)
        if path.with_name("file.zip.part").stat().st_size > 12_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    remote = add("fills", CONTENT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.tqdm, "update", update)
        error = get_error(remote.url, path)
    assert error.reason == "space" and "No space" in str(error)
    download(remote.url, path, **FAST)
    assert remote.requests[0] is None and int(remote.requests[1][6:-1]) > 12_000
    assert_whole(path, CONTENT)


def test_a_folder_that_cannot_be_written(add, tmp_path, monkeypatch):
    (tmp_path / "plain").write_bytes(b"a file")
    url = add("folder", CONTENT).url
    for path in (tmp_path / "plain" / "file.zip", tmp_path):
        error = get_error(url, path)
        assert error.reason == "folder" and str(path) in str(error)
    with pytest.MonkeyPatch.context() as patch:
        refused = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(refused))
        assert "Permission denied" in str(get_error(url, tmp_path / "file.zip"))
    download(url, tmp_path / "file.zip", **FAST)
    assert (tmp_path / "file.zip").read_bytes() == CONTENT


def test_a_killed_process_leaves_what_the_next_call_uses(add, path):
    remote = add("killed", CONTENT, faults=["stall"], seed=3)
    call = f"import eecs598.coco.download as d; d.CHUNK = 512; d.download({remote.url!r}, {str(path)!r})"
    process = subprocess.Popen([sys.executable, "-c", call], cwd=ROOT)
    part = path.with_name("file.zip.part")
    while not (part.exists() and part.stat().st_size):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not path.exists()
    download(remote.url, path, **FAST)
    assert remote.requests[0] is None and remote.requests[1] is not None
    assert_whole(path, CONTENT)


def test_processes_that_want_the_same_file_take_turns(add, path):
    remote = add("shared", CONTENT, faults=["stall", "drop"])
    call = f"download({remote.url!r}, {str(path)!r}, timeout=2)"
    command = [sys.executable, "-c", f"from eecs598.coco.download import download; {call}"]
    processes = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    told = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], told
    assert remote.requests[0] is None and len(remote.requests) == 3  # two faults and the rest, in one process
    assert_whole(path, CONTENT)


def test_threads_that_want_the_same_file_take_turns(add, path, capsys):
    remote = add("threads", CONTENT, faults=["drop", "ignore_range_and_drop"] * 4)
    results = fetch_many([(i, remote.url, path) for i in range(16)], workers=8, **FAST)
    assert results == [(i, None) for i in range(16)]
    assert_whole(path, CONTENT)


# --- many files ---------------------------------------------------------------------------------------------


def make_jobs(add, tmp_path, count, name):
    """Jobs for `count` small remote files, and the files by key."""
    contents = {i: random.Random(i).randbytes(500 + 37 * i) for i in range(count)}
    remotes = {i: add(f"{name}{i}", content, seed=i) for i, content in contents.items()}
    return [(i, remotes[i].url, tmp_path / name / f"{i}.jpg") for i in contents], contents, remotes


@pytest.mark.parametrize("workers", [1, 7])
def test_many_files_arrive_whatever_happens(add, tmp_path, workers):
    jobs, contents, remotes = make_jobs(add, tmp_path, 60, f"many{workers}_")
    for i, remote in remotes.items():
        remote.faults = [["healthy", "drop", "reset", "error_500", "error_429", "ignore_range"][i % 6]] * 2
    remotes[17].faults = ["error_404"]
    results = fetch_many(iter(jobs), workers=workers, **FAST)
    assert [key for key, _ in results] == list(contents)
    assert [key for key, error in results if error] == [17] and results[17][1].reason == "missing"
    asked = sum(len(remote.requests) for remote in remotes.values())
    assert fetch_many(jobs, workers=workers, **FAST) == [(i, None) for i in contents]
    assert sum(len(remote.requests) for remote in remotes.values()) == asked + 1  # only the one that failed
    folder = jobs[0][2].parent
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == {
        f"{i}.jpg": contents[i] for i in contents
    }


def test_many_files_take_one_bar(add, tmp_path, capsys):
    jobs, _, remotes = make_jobs(add, tmp_path, 5, "bar")
    remotes[3].faults = ["error_404"]
    fetch_many(jobs, **{**FAST, "progress": True})
    shown = capsys.readouterr()
    assert not shown.out and "5/5" in shown.err and "1 failed" in shown.err and "jpg" not in shown.err
    assert fetch_many([], **FAST) == []


def test_many_files_are_given_up_without_a_network(add, tmp_path):
    (_, good_url, good), *_ = make_jobs(add, tmp_path, 1, "there")[0]
    download(good_url, good, **FAST)
    url, tried = f"http://127.0.0.1:{unused_port()}/", []
    real = requests.Session.get
    jobs = [(i, url, good if i % 2 else tmp_path / str(i)) for i in range(400)]  # every other file is there
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(requests.Session, "get", lambda *a, **o: tried.append(a) or real(*a, **o))
        results = fetch_many(jobs, workers=2, **FAST)
    errors = [error for _, error in results if error]
    assert len(results) == 400 and len(errors) > 300 and {error.reason for error in errors} == {"network"}
    assert len(tried) < 60


def test_many_files_are_given_up_where_the_server_is_in_trouble(add, tmp_path):
    remote = add("trouble", CONTENT, faults=["error_503"] * 999)
    jobs = [(i, remote.url, tmp_path / str(i)) for i in range(200)]
    results = fetch_many(jobs, workers=2, retries=0, **FAST)
    assert [error.reason for _, error in results] == ["server"] * 200 and len(remote.requests) < 30


def test_many_files_stop_at_once(add, tmp_path):
    """Ctrl-C in the middle: what is there is whole, and the next call fetches the rest."""
    jobs, contents, remotes = make_jobs(add, tmp_path, 40, "stop")
    remotes[12].faults = ["error_500"] * 20

    def interrupt(outcomes, *_):
        list(itertools.islice(outcomes, 10))
        while len(remotes[12].requests) < 2:  # the second is followed by a pause of 10 s
            time.sleep(0.01)
        began.append(time.monotonic())
        raise KeyboardInterrupt

    began = []
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "_collect", interrupt)
        fetch_many(jobs, workers=2, **{**FAST, "backoff": 5})
    assert time.monotonic() - began[0] < 8
    folder = jobs[0][2].parent
    there = [file for file in folder.iterdir() if file.suffix == ".jpg"]
    assert 10 <= len(there) < 40 and all(file.read_bytes() == contents[int(file.stem)] for file in there)
    remotes[12].faults.clear()
    assert fetch_many(jobs, **FAST) == [(i, None) for i in contents]
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == {
        f"{i}.jpg": contents[i] for i in contents
    }


def test_the_addresses_are_well_formed():
    addresses = [
        *module.COURSE_FILE_URLS,
        *(url for urls in module.COCO_ANNOTATIONS_URLS.values() for url in urls),
    ]
    name = {"folder": "train2014", "file_name": "COCO_train2014_000000000009.jpg"}
    addresses += [url.format(**name) for url in (module.COCO_IMAGE_URL, module.COCO_IMAGE_MIRROR_URL)]
    for address in addresses:
        with contextlib.closing(requests.Session()) as session:
            assert session.prepare_request(requests.Request("GET", address)).url == address
    assert module.COCO_ANNOTATIONS_SHA256.keys() == module.COCO_ANNOTATIONS_URLS.keys() == {2014, 2017}


# --- what the message blames ------------------------------------------------------------------------------


@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_a_file_of_certificates_that_is_gone_is_what_the_message_names(variable, tmp_path, monkeypatch):
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)  # which comes first
    monkeypatch.setenv(variable, "/none/ca.pem")
    url, told = "https://127.0.0.1:9/f", r"certificate.*/none/ca\.pem.*REQUESTS_CA_BUNDLE"
    with pytest.raises(DownloadError, match=told) as caught:
        download(url, tmp_path / "f", progress=False, retries=0)
    assert "cannot be written" not in str(caught.value)
    with pytest.raises(DownloadError, match=told):
        find_answering([url], 2)


def test_who_waits_for_a_lock_is_told_which_file_it_is(tmp_path, capsys):
    waited = []

    def while_waiting():
        waited.append(1)
        if len(waited) == 2:
            raise TimeoutError

    mine, other = file_lock(tmp_path / "f", "writing"), file_lock(tmp_path / "f", "writing", while_waiting)
    with mine, pytest.raises(TimeoutError), other:
        raise AssertionError("two at once")
    (said,) = capsys.readouterr().err.splitlines()
    assert len(waited) == 2 and said.startswith(f"{tmp_path / 'f'}: waiting for another process that is writing it. ")
    assert f"remove {tmp_path / 'f'}.lock" in said
