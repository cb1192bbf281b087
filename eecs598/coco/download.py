"""Downloads that can be trusted: a file arrives whole and checked under its name, or not at all.

`download` fetches one file from one or several addresses, `fetch_many` many small ones at a time, `fetch_in_order`
as many as its caller goes on to take; `find_answering` tells which addresses answer at all. What has arrived stays
in `NAME.part` until the file is whole, and the next call goes on from there. `NAME.part.json` says which version of
the remote file the part belongs to, so that two versions are never joined.
"""

import contextlib
import errno
import hashlib
import itertools
import json
import math
import os
import re
import shutil
import sys
import threading
import time
import zipfile
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import requests
import urllib3
from tqdm import tqdm

from eecs598.files import STALE_LOCK, file_lock

COURSE_FILE_URLS = (  # 378 MB; no hash of it was ever published
    "http://web.eecs.umich.edu/~justincj/teaching/eecs498/coco.pt",
    "https://web.eecs.umich.edu/~justincj/teaching/eecs498/coco.pt",
)
# The second is the same bucket by another name: its certificate covers this one, and some networks let only https
# through.
COCO_HOSTS = ("http://images.cocodataset.org", "https://s3.amazonaws.com/images.cocodataset.org")
COCO_IMAGE_URL, COCO_IMAGE_MIRROR_URL = (host + "/{folder}/{file_name}" for host in COCO_HOSTS)  # folder: val2017, ...
COCO_ANNOTATIONS_URLS = {
    year: tuple(f"{host}/annotations/annotations_trainval{year}.zip" for host in COCO_HOSTS) for year in (2014, 2017)
}
COCO_ANNOTATIONS_SHA256 = {
    2014: "031296bbc80c45a1d1f76bf9a90ead27e94e99ec629208449507a4917a3bf009",
    2017: "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
}

CHUNK = 16 * 1024  # bytes a read; as many are lost at most when a connection drops
CONNECT_TIMEOUT = 10  # seconds
BACKOFF_LIMIT = 30  # seconds
RETRY_AFTER_LIMIT = 120  # seconds that a server's Retry-After may ask for
TRANSIENT = {408, 425, 429}  # and all from 500
HOPELESS = {"network", "server", "web page", "space", "folder"}  # what other files are likely to meet too

ADVICE = {
    "content": "nothing wrong was kept: run this again, or give another address",
    "web page": "open the address in a browser: a log-in page or a proxy may answer in the server's place",
    "server": "run this again later: what has arrived is kept",
    "network": "check the network connection and run this again: what has arrived is kept",
    "missing": "check the address, or give another one",
    "space": "free some, or choose a folder on another disk, and run this again: what has arrived is kept",
    "certificates": "let REQUESTS_CA_BUNDLE and CURL_CA_BUNDLE name a file that is there, or unset them",
    "folder": "choose a folder and a name that you may write to",
    "stopped": "run this again: what has arrived is kept",
}


class DownloadError(OSError):
    """A file that could not be had. The message is one line and says what to try next.

    `reason` is one of the keys of ADVICE: "network", "missing", "server", "web page", "content", "space",
    "folder", "stopped".
    """

    def __init__(self, message, reason="server"):
        super().__init__(message)
        self.reason = reason


class _MirrorError(Exception):
    """What went wrong with one address; `reason` as in DownloadError."""

    def __init__(self, what, reason):
        super().__init__(what)
        self.reason = reason


class _PassingError(_MirrorError):
    """A failure that another attempt may mend, after `pause` seconds where the server asked for a pause."""

    def __init__(self, what, reason, pause=0.0):
        super().__init__(what, reason)
        self.pause = pause


class _Note(NamedTuple):
    """Which version of a remote file a part belongs to, in the server's words; None where it did not say."""

    etag: str | None
    modified: str | None
    length: int | None


@dataclass
class _Task:
    """One file on its way: where it goes, what is known of it, how patiently it is fetched, how far it is."""

    path: Path
    session: requests.Session
    bar: tqdm
    size: int | None = None
    sha256: str | None = None
    check: object = None
    retries: int = 5
    timeout: float = 30
    backoff: float = 0.5
    deadline: float = math.inf
    stop: threading.Event = field(default_factory=threading.Event)
    arrived: int = 0  # bytes received in this call
    furthest: int = 0  # the longest that the part has been
    start_over: bool = False  # the next request asks for the whole file
    joined: bool = True  # the part may hold bytes of several answers

    @property
    def part(self):
        return self.path.with_name(self.path.name + ".part")

    @property
    def note(self):
        return self.path.with_name(self.path.name + ".part.json")


# --- one file -----------------------------------------------------------------------------------------------


def download(
    urls, path, *, size=None, sha256=None, check=None, progress=True, retries=5, timeout=30, backoff=0.5,
    deadline=math.inf,
):  # fmt: skip
    """Fetch a file from `urls`, one address or several mirrors in order, to `path`; returns `path`.

    size, sha256: the file's length in bytes and its hash in hexadecimal, where known
    check: called with the path of the complete copy before it gets its name; raises ValueError if it is wrong
    progress: show a bar with rate and time left on standard error
    retries: attempts in a row at one address that may fail without bringing anything new
    timeout: seconds without a byte that count as a failure
    backoff: seconds; the pauses between attempts are 0, 2, 4, 8, ... times it, and a little more at random
    deadline: the time, as of time.monotonic(), at which a file that is not whole is given up; what has arrived is kept

    A file that is there already and passes is not fetched again. An interrupted download goes on where it
    stopped if the remote file is still the same, else it starts over. Processes that want the same file take
    turns. A length that neither the server nor the caller tells, without a hash or check, goes unverified.
    Raises DownloadError.
    """
    style = {"unit": "B", "unit_scale": True, "unit_divisor": 1024, "delay": 1e-3}  # shown from _move_bar on
    bar = tqdm(desc=Path(path).name, disable=not progress, **style)
    known = {"size": size, "sha256": sha256, "check": check}
    patience = {"retries": retries, "timeout": timeout, "backoff": backoff, "deadline": deadline}
    with requests.Session() as session, bar:
        task = _Task(Path(path), session, bar, **known, **patience)
        try:
            return _fetch(urls, task)
        except KeyboardInterrupt:
            bar.close()
            if task.part.exists():
                kept = f"{_length(task.part) / 2**20:.1f} MiB are kept in {task.part}"
                _say(f"stopped; {kept}, and the next call goes on from there")
            raise


def _fetch(urls, task):
    """See to it that task.path is there, whole; returns it or raises DownloadError."""
    try:
        if _is_complete(task):
            return task.path
        task.path.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(task.path, partial(_wait_for_others, task)):
            if not _is_complete(task):  # another process may have fetched it meanwhile
                _fetch_from_any([urls] if isinstance(urls, str) else list(urls), task)
    except DownloadError:
        raise
    except OSError as error:  # of the local disk: the network's are told apart where they arise
        if "certificate" in str(error):  # requests raises a plain OSError for their file
            raise _explain(f"{task.path}: {error}", "certificates") from None
        reason = "space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "folder"
        raise _explain(f"{task.path}: cannot be written ({error.strerror or error})", reason) from None
    return task.path


def _explain(what, reason):
    return DownloadError(" ".join(f"{what}; {ADVICE[reason]}".split()), reason)


def _is_complete(task):
    if task.path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(task.path))
    if not task.path.exists():
        return False
    try:
        _verify(task.path, task)
    except ValueError:
        return False
    return True


def _wait_for_others(task, attempt):
    if attempt == 0:
        _say(f"{task.path}: another process is fetching it; waiting for that one. {STALE_LOCK.format(task.path)}")
    _check_stop(task)


def _fetch_from_any(urls, task):
    """Try the mirrors in order; the part that one has left is continued by the next."""
    task.furthest = _length(task.part)
    failures = []
    for url in urls:
        try:
            _fetch_from(url, task)
            return
        except _MirrorError as failure:
            failures.append((url, failure))
    raise _no_address(task.path.name, failures)


def _no_address(name, failures):
    """The DownloadError of a file that none of its addresses gave; failures: (address, _MirrorError) of each."""
    reasons = {failure.reason for _, failure in failures}
    told = "; ".join(f"{url}: {failure}" for url, failure in failures) or "no address was given"
    return _explain(f"{name}: {told}", next((key for key in ADVICE if key in reasons), "missing"))


def _fetch_from(url, task):
    """Fetch from one address with retries; raises the last _MirrorError."""
    patience = urllib3.Retry(
        task.retries, backoff_factor=task.backoff, backoff_max=BACKOFF_LIMIT, backoff_jitter=task.backoff
    )
    retry = patience
    while True:
        _check_stop(task)
        try:
            _receive(url, task)
            _finish(task)
            return
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            failure = _network_failure(error, task.timeout)
        except _PassingError as passing:
            failure = passing
        if not isinstance(failure, _PassingError):
            raise failure
        length = _length(task.part)
        if length > task.furthest:
            task.furthest, retry = length, patience  # something came: a bad line is no dead line
        retry = _wait(retry, failure, task)


def _wait(retry, failure, task):
    """Count a failure and pause before the next attempt; raises it once the attempts are used up."""
    if failure.pause > RETRY_AFTER_LIMIT:
        raise _MirrorError(f"{failure}, asks to wait for {failure.pause:.0f} s", failure.reason)
    if failure.reason == "network" and not task.arrived and retry.history:
        raise failure  # a computer without a network should hear so soon
    try:
        retry = retry.increment()
    except urllib3.exceptions.MaxRetryError:
        raise failure from None
    pause = max(retry.get_backoff_time(), failure.pause)
    if pause >= 1:
        task.bar.delay = 0
        task.bar.set_postfix_str(f"{failure}; next attempt in {pause:.0f} s")
    task.stop.wait(pause)
    task.bar.set_postfix_str("", refresh=False)
    return retry


def _check_stop(task):
    if task.stop.is_set():
        raise _explain(f"{task.path.name}: stopped", "stopped")
    if time.monotonic() > task.deadline:
        raise _explain(f"{task.path.name}: not whole in the time allowed", "stopped")


# --- one attempt --------------------------------------------------------------------------------------------


def _receive(url, task):
    """One request for what the part lacks; returns once the part is complete as far as lengths can tell."""
    note = None if task.start_over else _read_note(task)
    have = _length(task.part) if note else 0
    if have and have == note.length:
        return  # it was stopped between the last byte and the renaming
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        strong_etag = note.etag if note.etag and not note.etag.startswith("W/") else None
        if strong_etag or note.modified:
            headers["If-Range"] = strong_etag or note.modified
    timeouts = (min(CONNECT_TIMEOUT, task.timeout), task.timeout)
    with task.session.get(url, headers=headers, stream=True, timeout=timeouts) as response:
        if have and response.status_code in (206, 416):
            _check_continuation(response, note, have, task)
            if response.status_code == 206:
                _write(response, note, have, task)
        else:
            _check_answer(response)
            _write(response, _note_of(response), 0, task)


def _check_answer(response):
    """Raise unless this is the answer to a request for a whole file."""
    status = response.status_code
    what = f"answers {status} {response.reason or ''}".rstrip()
    if status in TRANSIENT or status >= 500:
        raise _PassingError(what, "server", _asked_pause(response))
    if status != 200:
        raise _MirrorError(what, "missing")
    if response.headers.get("Content-Type", "").lower().startswith(("text/html", "application/xhtml")):
        raise _MirrorError("serves a web page instead of the file", "web page")


def _asked_pause(response):
    """The seconds of a Retry-After header, 0 without one that makes sense."""
    try:
        return urllib3.Retry().parse_retry_after(response.headers.get("Retry-After", "0"))
    except urllib3.exceptions.InvalidHeader:
        return 0.0


def _check_continuation(response, note, have, task):
    """Raise, and arrange to start over, unless the answer continues the file that the part belongs to."""
    span = re.fullmatch(r"bytes (\d+|\*)(?:-\d+)?/(\d+|\*)", response.headers.get("Content-Range", ""))
    start, total = span.groups() if span else (None, None)
    if response.status_code == 416:  # nothing is left to send: the part is all of a file of untold length
        fits = start == "*" and total == str(have) and note.length is None
    else:
        fits = start == str(have) and total in ("*", str(note.length or total))
    now = _note_of(response)
    changed = any(old and new and old != new for old, new in zip(note[:2], now[:2]))
    if not fits or changed or _is_encoded(response):
        task.start_over = True
        raise _PassingError("answers with something other than the rest of the file", "server")


def _is_encoded(response):
    return response.headers.get("Content-Encoding", "identity").lower() != "identity"


def _note_of(response):
    """What an answer tells about its file; an encoded one says nothing about the bytes after decoding."""
    headers = response.headers
    if _is_encoded(response):
        return _Note(None, None, None)
    length = headers.get("Content-Length", "")
    known = length.isdecimal() and "chunked" not in headers.get("Transfer-Encoding", "").lower()
    return _Note(headers.get("ETag"), headers.get("Last-Modified"), int(length) if known else None)


def _write(response, note, have, task):
    """Append the answer's body to the part at `have` (0: start it anew); raises unless all of it has come."""
    total = task.size if note.length is None else note.length
    if task.size is not None and total != task.size:
        raise _MirrorError(f"has a file of {total:,} bytes, wanted {task.size:,}", "content")
    chunks = response.iter_content(CHUNK)
    first = next(chunks, b"")
    if not have:
        _check_start(first)  # before the part that is there gives way
    _check_space(total, task)
    if have:
        task.joined = True
    else:
        _start_part(note, task)
    _move_bar(task.bar, have, total)
    with task.part.open("ab") as file:
        for chunk in itertools.chain([first], chunks):
            _check_stop(task)
            have += len(chunk)
            if total is not None and have > total:
                task.start_over = True
                raise _PassingError(f"sends more than {total:,} bytes", "content")
            file.write(chunk)
            task.arrived += len(chunk)
            task.bar.update(len(chunk))
    if total is not None and have < total:
        raise _PassingError(f"stops after {have:,} of {total:,} bytes", "server")


def _check_start(first):
    if not first:
        raise _PassingError("sends an empty file", "content")
    if first.lstrip()[:15].lower().startswith((b"<!doctype html", b"<html")):
        raise _MirrorError("serves a web page instead of the file", "web page")


def _check_space(total, task):
    missing = (total or 0) - _length(task.part)
    free = shutil.disk_usage(task.path.parent).free
    if missing > free:
        what = f"{missing / 2**20:,.0f} MiB more are needed on its disk, {free / 2**20:,.0f} MiB are free"
        raise _explain(f"{task.path}: {what}", "space")


def _move_bar(bar, have, total):
    """Let the bar stand at `have` of `total` bytes, with a rate that counts from here."""
    bar.reset()
    bar.total, bar.delay = total, 0
    bar.n = bar.initial = bar.last_print_n = have
    bar.refresh()


def _network_failure(error, timeout):
    """An exception of requests or urllib3 as a _MirrorError in plain words; `timeout` is the request's, in seconds."""
    cause = error.args[0] if error.args else None
    if isinstance(error, (requests.exceptions.InvalidURL, ValueError)):
        return _MirrorError("is not an address that can be fetched", "missing")
    if isinstance(error, requests.TooManyRedirects):
        return _MirrorError("leads from one address to the next without end", "missing")
    if isinstance(error, requests.exceptions.SSLError):
        return _MirrorError(f"makes no secure connection ({_last_words(cause)})", "network")
    if isinstance(error, requests.exceptions.ContentDecodingError):
        return _PassingError("sends damaged compressed data", "server")
    if isinstance(error, requests.ConnectTimeout):
        return _PassingError("cannot be reached (no answer)", "network")
    if isinstance(cause, urllib3.exceptions.MaxRetryError):
        if isinstance(cause.reason, urllib3.exceptions.NameResolutionError):
            return _PassingError("its name cannot be resolved", "network")
        return _PassingError(f"cannot be reached ({_last_words(cause.reason)})", "network")
    if isinstance(error, requests.Timeout) or isinstance(cause, urllib3.exceptions.ReadTimeoutError):
        return _PassingError(f"is silent for {timeout:g} s", "server")
    return _PassingError("drops the connection", "server")


def _last_words(error):
    """The innermost explanation of a nested error, without the numbers and objects around it."""
    return re.split(r"\[Errno -?\d+\] |: ", str(error))[-1].strip("()'\"")[:100] or type(error).__name__


# --- which addresses answer -----------------------------------------------------------------------------------


def find_answering(urls, seconds):
    """Those of `urls` that answer within `seconds` in all, names resolved and connections made; nothing is fetched.

    They are asked at the same time. Raises DownloadError where none answers with a file.
    """
    failures = dict.fromkeys(urls, _MirrorError(f"no answer within {seconds:g} s", "network"))

    def ask(url):
        try:
            with requests.get(url, stream=True, timeout=seconds) as response:
                _check_answer(response)
            failures.pop(url, None)
        except _MirrorError as failure:
            failures[url] = failure
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            failures[url] = _network_failure(error, seconds)
        except OSError as error:  # of the file of certificates
            failures[url] = _MirrorError(str(error), "certificates")

    threads = [threading.Thread(target=ask, args=(url,), daemon=True) for url in urls]
    end = time.monotonic() + seconds
    for thread in threads:
        thread.start()
    for thread in threads:  # daemons, which are left behind: nothing else bounds the time that a name takes
        thread.join(max(0.0, end - time.monotonic()))
    answering = [url for url in urls if url not in failures]
    if not answering:
        raise _no_address("no address answers", list(failures.items()))
    return answering


# --- the part -----------------------------------------------------------------------------------------------


def _length(path):
    return path.stat().st_size if path.exists() else 0


def _start_part(note, task):
    """No part, and the note of the version that the next one is to hold."""
    task.part.unlink(missing_ok=True)  # first: a part never stands beside another version's note
    task.note.write_text(json.dumps(note._asdict()), encoding="utf-8")
    task.start_over = task.joined = False


def _read_note(task):
    """The part's note; None where there is none, or where nothing would tell a mixture of versions."""
    try:
        note = _Note(**json.loads(task.note.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None
    can_tell = note.etag or note.modified or task.sha256 or task.check
    return note if can_tell else None


def _finish(task):
    """Check the complete part, and only then give it its name."""
    try:
        _verify(task.part, task)
    except ValueError as error:
        task.part.unlink()
        task.note.unlink(missing_ok=True)
        kind = _PassingError if task.joined else _MirrorError
        raise kind(f"sends a file that fails its check ({error})", "content") from None
    with task.part.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(task.part, task.path)
    task.note.unlink(missing_ok=True)


def _verify(path, task):
    """Raise ValueError unless the file at `path` is what `task` wants."""
    length = _length(path)
    if task.size is not None and length != task.size:
        raise ValueError(f"{length:,} bytes, wanted {task.size:,}")
    if task.sha256 is not None and (seen := _sha256(path)) != task.sha256.lower():
        raise ValueError(f"SHA-256 {seen[:12]}..., wanted {task.sha256[:12]}...")
    if task.check is not None:
        task.check(path)


def _sha256(path):
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def check_zip(path):
    """Raise ValueError unless `path` is a zip archive with right CRCs and nothing behind its directory."""
    try:
        with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
            damaged = archive.testzip()
            file.seek(-22 - len(archive.comment), os.SEEK_END)  # the record that ends an archive
            ends = file.read(4) == b"PK\5\6"
    except Exception as error:  # zipfile, zlib and struct each raise their own on damaged bytes
        raise ValueError(f"not a whole zip archive: {' '.join(str(error).split()):.150}") from None
    if damaged is not None:
        raise ValueError(f"damaged zip archive: {damaged} has a wrong CRC")
    if not ends:
        raise ValueError("damaged zip archive: other bytes follow it")


def check_torch_file(path):
    """Raise ValueError unless `path` is a whole file of torch.save, by its CRCs; its content is not judged.

    Files from before torch 1.6 are no zip archives and have no CRC: those are read to the end, into memory,
    where code in them is refused.
    """
    with open(path, "rb") as file:
        head = file.read(2)
    if head != b"\x80\x02":  # protocol 2, with which every such older file begins
        check_zip(path)
        return
    import torch  # here, since it takes seconds and nothing else in this file needs it

    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the unpickler raises on bytes that it does not understand
        raise ValueError(f"not a whole file of torch.save: {' '.join(str(error).split()):.150}") from None


# --- many files ---------------------------------------------------------------------------------------------


def fetch_many(jobs, *, workers=16, progress=True, **options):
    """Fetch many small files, `workers` at a time; returns [(key, None or DownloadError)] in the jobs' order.

    jobs: an iterable of (key, urls, path), with `urls` and `path` as for `download`
    options: `size`, `sha256`, `check`, `retries`, `timeout`, `backoff` as for `download`, for every file

    Files that are there already and pass are skipped. Once 2 * workers files in a row have brought nothing
    for a reason that is not their own (no network, a server in trouble, a full disk), the others get the last
    one's error untried. A KeyboardInterrupt stops all workers and leaves whole files and parts, from which
    the next call goes on.
    """
    jobs = list(jobs)
    outcomes = fetch_in_order(jobs, workers=workers, **options)
    with contextlib.closing(outcomes), tqdm(total=len(jobs), unit="file", disable=not progress) as bar:
        errors = _collect(outcomes, len(jobs), 2 * workers, bar)
    return [(job[0], error) for job, error in zip(jobs, errors)]


def fetch_in_order(jobs, *, read=None, workers=16, **options):
    """Fetch small files, `workers` at a time; yields (key, value, bytes that came) in the jobs' order.

    jobs, options: as for `fetch_many`, and `deadline` as for `download`, for all files together. The jobs are taken
        from their iterable a little ahead of what is yielded
    read: called with the path of each file that is there, in the worker's thread; value is what it returns, None
        without it. For a file that could not be had, value is the DownloadError

    Closing the generator stops all workers, as does a KeyboardInterrupt in it.
    """
    local, stop = threading.local(), threading.Event()
    silent = tqdm(disable=True)

    def fetch(job):
        key, urls, path = job
        task = _Task(Path(path), local.session, silent, **options, stop=stop)
        try:
            _fetch(urls, task)
        except DownloadError as error:
            return key, error, task.arrived
        return key, None if read is None else read(task.path), task.arrived

    with contextlib.ExitStack() as sessions:

        def open_session():
            local.session = sessions.enter_context(requests.Session())

        pool = ThreadPoolExecutor(workers, initializer=open_session)
        try:
            yield from _in_order(pool, fetch, jobs, ahead=4 * workers)
        finally:
            stop.set()  # for those that are still at work after an interruption
            pool.shutdown(cancel_futures=True)


def _in_order(pool, function, items, ahead):
    """Yield function(item) in the items' order, while the pool works at most `ahead` items further on."""
    waiting = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _collect(outcomes, count, patience, bar):
    """The errors (or None) of `count` files; after `patience` hopeless ones in a row the rest get it."""
    errors, failed, hopeless = [], 0, 0
    for _, error, arrived in outcomes:
        errors.append(error)
        bar.update()
        if error is not None:
            failed += 1
            bar.set_postfix_str(f"{failed} failed", refresh=False)
        if arrived:
            hopeless = 0
        elif error is not None and error.reason in HOPELESS:
            hopeless += 1
            if hopeless >= patience:
                return errors + [error] * (count - len(errors))
    return errors


def _say(text):
    tqdm.write(text, file=sys.stderr)
