"""Reliable downloads: a file gets its final name only when it is complete and verified.

`download` gets one file from one or several addresses, `fetch_many` many small files in parallel, `fetch_in_order` is a
generator of such files; `find_answering` tests which addresses respond. A partial download is `NAME.part`, from which
the next call resumes. `NAME.part.json` records the version of the remote file, so that two versions are never mixed.
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
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import requests
import urllib3
from tqdm import tqdm

from eecs598.coco.threads import map_in_order
from eecs598.files import file_lock
from eecs598.progress import say

COURSE_FILE_URLS = (  # 378 MB; no hash of it was ever published
    "http://web.eecs.umich.edu/~justincj/teaching/eecs498/coco.pt",
    "https://web.eecs.umich.edu/~justincj/teaching/eecs498/coco.pt",
)
# The second one is the same bucket under another name, for which it has a certificate: some networks only allow https.
COCO_HOSTS = ("http://images.cocodataset.org", "https://s3.amazonaws.com/images.cocodataset.org")
COCO_IMAGE_URL, COCO_IMAGE_MIRROR_URL = (host + "/{folder}/{file_name}" for host in COCO_HOSTS)  # folder: val2017, ...
COCO_ANNOTATIONS_URLS = {
    year: tuple(f"{host}/annotations/annotations_trainval{year}.zip" for host in COCO_HOSTS) for year in (2014, 2017)
}
COCO_ANNOTATIONS_SHA256 = {
    2014: "031296bbc80c45a1d1f76bf9a90ead27e94e99ec629208449507a4917a3bf009",
    2017: "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
}

CHUNK = 16 * 1024  # bytes per read, the most that a dropped connection loses
CONNECT_TIMEOUT = 10  # seconds
BACKOFF_LIMIT = 30  # seconds
RETRY_AFTER_LIMIT = 120  # seconds that a server's Retry-After may ask for
TRANSIENT = {408, 425, 429}  # and all from 500
HOPELESS = {"network", "server", "web page", "space", "folder"}  # likely to affect other files too

ADVICE = {
    "content": "the bad file was deleted: run this again, or give another address",
    "web page": "open the address in a browser: a log-in page or a proxy may respond instead of the server",
    "server": "run this again later to resume",
    "network": "check the network connection and run this again to resume",
    "missing": "check the address, or give another one",
    "space": "free some space, or choose a folder on another disk, and run this again to resume",
    "certificates": "set REQUESTS_CA_BUNDLE and CURL_CA_BUNDLE to an existing file, or unset them",
    "folder": "choose a folder and a name that you can write to",
    "stopped": "run this again to resume",
}


class DownloadError(OSError):
    """A download failed. The message is one line and says what to try next.

    `reason` is one of the keys of ADVICE: "network", "missing", "server", "web page", "content", "space",
    "certificates", "folder", "stopped".
    """

    def __init__(self, message, reason="server"):
        super().__init__(message)
        self.reason = reason


class _MirrorError(Exception):
    """A failure of one address; `reason` as in DownloadError."""

    def __init__(self, what, reason):
        super().__init__(what)
        self.reason = reason


class _TransientError(_MirrorError):
    """A failure after which a retry may succeed, after `pause` seconds if the server asked for it."""

    def __init__(self, what, reason, pause=0.0):
        super().__init__(what, reason)
        self.pause = pause


class _Note(NamedTuple):
    """The version of a remote file that a partial download belongs to, from the server's headers or None."""

    etag: str | None
    modified: str | None
    length: int | None


@dataclass
class _Task:
    """The download of one file: its path, what is known of it, retry settings, and progress."""

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
    furthest: int = 0  # the largest length of the part so far
    start_over: bool = False  # the next request is for the whole file
    joined: bool = True  # the part may contain bytes from several responses

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
    """Download a file from `urls`, one address or several mirrors in order, to `path`. Returns `path`.

    size, sha256: the length in bytes and the hash in hexadecimal, if known
    check: called with the path of the complete file before it is renamed; raises ValueError if it is invalid
    progress: show a progress bar on standard error
    retries: failed attempts in a row at one address without any new data
    timeout: seconds without data that count as a failure
    backoff: seconds; the pauses between attempts are 0, 2, 4, 8, ... times this, with a random addition
    deadline: the time, as in time.monotonic(), at which the download stops; the partial file is kept

    An existing valid file is not downloaded again. An interrupted download resumes if the remote file has not
    changed, otherwise it starts over. Only one process at a time downloads the same file. If neither the server nor
    the caller gives a length, hash or check, the length is not verified. Raises DownloadError.
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
                say(f"stopped; {kept}, and the next call resumes from there")
            raise


def _fetch(urls, task):
    """Make sure that task.path exists and is valid. Returns it; raises DownloadError."""
    try:
        if _is_complete(task):
            return task.path
        task.path.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(task.path, "downloading", partial(_check_stop, task)):
            if not _is_complete(task):  # another process may have downloaded it in the meantime
                _fetch_from_any([urls] if isinstance(urls, str) else list(urls), task)
    except DownloadError:
        raise
    except OSError as error:  # local; network errors are handled where they occur
        if "certificate" in str(error):  # requests raises a plain OSError if the certificate file is missing
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


def _fetch_from_any(urls, task):
    """Try the mirrors in order. Each one continues the partial file of the one before."""
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
    """The DownloadError for a file that failed at all addresses. failures: (address, _MirrorError) of each."""
    reasons = {failure.reason for _, failure in failures}
    listed = "; ".join(f"{url}: {failure}" for url, failure in failures) or "no address was given"
    return _explain(f"{name}: {listed}", next((key for key in ADVICE if key in reasons), "missing"))


def _fetch_from(url, task):
    """Download from one address with retries. Raises the last _MirrorError."""
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
        except _TransientError as passing:
            failure = passing
        if not isinstance(failure, _TransientError):
            raise failure
        length = _length(task.part)
        if length > task.furthest:
            task.furthest, retry = length, patience  # there was progress, so count retries from 0
        retry = _wait(retry, failure, task)


def _wait(retry, failure, task):
    """Count a failure and pause before the next attempt. Raises it if there are no attempts left."""
    if failure.pause > RETRY_AFTER_LIMIT:
        raise _MirrorError(f"{failure}, asks to wait for {failure.pause:.0f} s", failure.reason)
    if failure.reason == "network" and not task.arrived and retry.history:
        raise failure  # probably no network at all: fail soon
    try:
        retry = retry.increment()
    except urllib3.exceptions.MaxRetryError:
        raise failure from None
    pause = max(retry.get_backoff_time(), failure.pause)
    if pause >= 1:
        task.bar.delay = 0
        task.bar.set_postfix_str(f"{failure}; next attempt in {pause:.0f} s")
    task.stop.wait(min(pause, max(0, task.deadline - time.monotonic())))
    task.bar.set_postfix_str("", refresh=False)
    return retry


def _check_stop(task):
    if task.stop.is_set():
        raise _explain(f"{task.path.name}: stopped", "stopped")
    if time.monotonic() > task.deadline:
        raise _explain(f"{task.path.name}: not whole in the time allowed", "stopped")


# --- one attempt --------------------------------------------------------------------------------------------


def _receive(url, task):
    """Request the missing rest of the file once. Returns when the part is complete, judging by lengths."""
    note = None if task.start_over else _read_note(task)
    have = _length(task.part) if note else 0
    if have and have == note.length:
        return  # interrupted between the last byte and the renaming
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
    """Raise unless this is a successful response to a request for a whole file."""
    status = response.status_code
    what = f"answers {status} {response.reason or ''}".rstrip()
    if status in TRANSIENT or status >= 500:
        raise _TransientError(what, "server", _asked_pause(response))
    if status != 200:
        raise _MirrorError(what, "missing")
    if response.headers.get("Content-Type", "").lower().startswith(("text/html", "application/xhtml")):
        raise _MirrorError("serves a web page instead of the file", "web page")


def _asked_pause(response):
    """The seconds in a Retry-After header, 0 if it is missing or invalid."""
    try:
        return urllib3.Retry().parse_retry_after(response.headers.get("Retry-After", "0"))
    except urllib3.exceptions.InvalidHeader:
        return 0.0


def _check_continuation(response, note, have, task):
    """Raise, and arrange to start over, unless the response continues the partial file."""
    span = re.fullmatch(r"bytes (\d+|\*)(?:-\d+)?/(\d+|\*)", response.headers.get("Content-Range", ""))
    start, total = span.groups() if span else (None, None)
    if response.status_code == 416:  # nothing is left: the part is the whole file, whose length was unknown
        fits = start == "*" and total == str(have) and note.length is None
    else:
        fits = start == str(have) and total in ("*", str(note.length or total))
    now = _note_of(response)
    changed = any(old and new and old != new for old, new in zip(note[:2], now[:2]))
    if not fits or changed or _is_encoded(response):
        task.start_over = True
        raise _TransientError("answers with something other than the rest of the file", "server")


def _is_encoded(response):
    return response.headers.get("Content-Encoding", "identity").lower() != "identity"


def _note_of(response):
    """The version of the file in a response. Headers of an encoded one do not describe the decoded bytes."""
    headers = response.headers
    if _is_encoded(response):
        return _Note(None, None, None)
    length = headers.get("Content-Length", "")
    known = length.isdecimal() and "chunked" not in headers.get("Transfer-Encoding", "").lower()
    return _Note(headers.get("ETag"), headers.get("Last-Modified"), int(length) if known else None)


def _write(response, note, have, task):
    """Append the response's body to the part at `have` (0: start over). Raises unless it is complete."""
    total = task.size if note.length is None else note.length
    if task.size is not None and total != task.size:
        raise _MirrorError(f"has a file of {total:,} bytes, wanted {task.size:,}", "content")
    chunks = response.iter_content(CHUNK)
    first = next(chunks, b"")
    if not have:
        _check_start(first)  # before the old part is deleted
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
                raise _TransientError(f"sends more than {total:,} bytes", "content")
            file.write(chunk)
            task.arrived += len(chunk)
            task.bar.update(len(chunk))
    if total is not None and have < total:
        raise _TransientError(f"stops after {have:,} of {total:,} bytes", "server")


def _check_start(first):
    if not first:
        raise _TransientError("sends an empty file", "content")
    if first.lstrip()[:15].lower().startswith((b"<!doctype html", b"<html")):
        raise _MirrorError("serves a web page instead of the file", "web page")


def _check_space(total, task):
    missing = (total or 0) - _length(task.part)
    free = shutil.disk_usage(task.path.parent).free
    if missing > free:
        what = f"{missing / 2**20:,.0f} MiB more are needed on its disk, {free / 2**20:,.0f} MiB are free"
        raise _explain(f"{task.path}: {what}", "space")


def _move_bar(bar, have, total):
    """Set the bar to `have` of `total` bytes, and measure its rate from here."""
    bar.reset()
    bar.total, bar.delay = total, 0
    bar.n = bar.initial = bar.last_print_n = have
    bar.refresh()


def _network_failure(error, timeout):
    """An exception of requests or urllib3 as a _MirrorError. timeout: of the request, in seconds."""
    cause = error.args[0] if error.args else None
    if isinstance(error, (requests.exceptions.InvalidURL, ValueError)):
        return _MirrorError("is not a valid address", "missing")
    if isinstance(error, requests.TooManyRedirects):
        return _MirrorError("has too many redirects", "missing")
    if isinstance(error, requests.exceptions.SSLError):
        return _MirrorError(f"the secure connection failed ({_last_words(cause)})", "network")
    if isinstance(error, requests.exceptions.ContentDecodingError):
        return _TransientError("sends damaged compressed data", "server")
    if isinstance(error, requests.ConnectTimeout):
        return _TransientError("cannot be reached (no answer)", "network")
    if isinstance(cause, urllib3.exceptions.MaxRetryError):
        if isinstance(cause.reason, urllib3.exceptions.NameResolutionError):
            return _TransientError("its name cannot be resolved", "network")
        return _TransientError(f"cannot be reached ({_last_words(cause.reason)})", "network")
    if isinstance(error, requests.Timeout) or isinstance(cause, urllib3.exceptions.ReadTimeoutError):
        return _TransientError(f"is silent for {timeout:g} s", "server")
    return _TransientError("drops the connection", "server")


def _last_words(error):
    """The innermost message of a nested error, without numbers and objects."""
    return re.split(r"\[Errno -?\d+\] |: ", str(error))[-1].strip("()'\"")[:100] or type(error).__name__


# --- which addresses answer -----------------------------------------------------------------------------------


def find_answering(urls, seconds):
    """Those of `urls` that respond within `seconds`, name resolution included. Nothing is downloaded.

    They are tried in parallel. Raises DownloadError if none responds with a file.
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
        except OSError as error:  # from a missing certificate file
            failures[url] = _MirrorError(str(error), "certificates")

    threads = [threading.Thread(target=ask, args=(url,), daemon=True) for url in urls]
    end = time.monotonic() + seconds
    for thread in threads:
        thread.start()
    for thread in threads:  # abandoned after the time limit, as name resolution has no timeout of its own
        thread.join(max(0.0, end - time.monotonic()))
    answering = [url for url in urls if url not in failures]
    if not answering:
        raise _no_address("no address answers", list(failures.items()))
    return answering


# --- the part -----------------------------------------------------------------------------------------------


def _length(path):
    return path.stat().st_size if path.exists() else 0


def _start_part(note, task):
    """Delete the part, and write the note for the new one."""
    task.part.unlink(missing_ok=True)  # first, so that a part never has another version's note
    task.note.write_text(json.dumps(note._asdict()), encoding="utf-8")
    task.start_over = task.joined = False


def _read_note(task):
    """The part's note; None if there is none, or if a mixture of versions could not be detected."""
    try:
        note = _Note(**json.loads(task.note.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None
    can_tell = note.etag or note.modified or task.sha256 or task.check
    return note if can_tell else None


def _finish(task):
    """Verify the complete part, and then rename it."""
    try:
        _verify(task.part, task)
    except ValueError as error:
        task.part.unlink()
        task.note.unlink(missing_ok=True)
        kind = _TransientError if task.joined else _MirrorError
        raise kind(f"sends a file that fails its check ({error})", "content") from None
    with task.part.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(task.part, task.path)
    task.note.unlink(missing_ok=True)


def _verify(path, task):
    """Raise ValueError unless the file at `path` has the right length and hash and passes the check of `task`."""
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


# --- many files ---------------------------------------------------------------------------------------------


def fetch_many(jobs, *, workers=16, progress=True, **options):
    """Download many small files, `workers` in parallel. Returns [(key, None or DownloadError)] in the jobs' order.

    jobs: an iterable of (key, urls, path), with `urls` and `path` as in `download`
    options: `size`, `sha256`, `check`, `retries`, `timeout`, `backoff` as in `download`, for every file

    Existing valid files are skipped. After 2 * workers failures in a row that are likely to affect all files (no
    network, server errors, a full disk), the others are not tried and get the same error. A KeyboardInterrupt stops
    all workers and leaves complete and partial files, from which the next call resumes.
    """
    jobs = list(jobs)
    outcomes = fetch_in_order(jobs, workers=workers, **options)
    with contextlib.closing(outcomes), tqdm(total=len(jobs), unit="file", disable=not progress) as bar:
        errors = _collect(outcomes, len(jobs), 2 * workers, bar)
    return [(job[0], error) for job, error in zip(jobs, errors)]


def fetch_in_order(jobs, *, read=None, workers=16, **options):
    """Download small files, `workers` in parallel. Yields (key, value, bytes received) in the jobs' order.

    jobs, options: as in `fetch_many`, and `deadline` as in `download`, for all files together. Jobs are taken from the
        iterable a little ahead of the results
    read: called with the path of each file, in the worker's thread; its result is the value, None without it. If a
        download fails, the value is the DownloadError

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
            yield from map_in_order(pool, fetch, jobs, ahead=4 * workers)
        finally:
            stop.set()  # for workers that are still running after an interruption
            pool.shutdown(cancel_futures=True)


def _collect(outcomes, count, patience, bar):
    """The errors (or None) of `count` files. After `patience` hopeless ones in a row, the rest get the same error."""
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
