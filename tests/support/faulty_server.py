"""A web server on loopback that misbehaves on purpose, for test_download.py and test_subset.py.

Each remote file has a list of faults: every request uses up one, and then the server is in good health. A fault may
also be the whole server's.
"""

import contextlib
import gzip
import random
import re
import socket
import struct
import threading
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from eecs598.coco.download import DownloadError

WEB_PAGE = b"<!DOCTYPE html>\n<html><title>Please log in</title>" + b"<p>welcome</p>" * 200
FAULTS = {}


def fault(function):
    FAULTS[function.__name__] = function
    return function


class Remote:
    """A file on the server: its bytes, its validators ("etag", "weak", "date" or "none") and faults to come.

    `versions` are all the bytes that have ever been the file; `requests` the Range header of each request,
    `answers` the status of each answer.
    """

    def __init__(self, url, content, faults=(), validators="etag", seed=0, next_content=None):
        self.url, self.validators, self.seed = url, validators, seed
        self.versions, self.next_content = [content], next_content
        self.faults, self.requests, self.answers, self.lock = list(faults), [], [], threading.Lock()

    @property
    def content(self):
        return self.versions[-1]

    def headers(self):
        version = len(self.versions)
        return {
            "etag": {"ETag": f'"version-{version}"'},
            "weak": {
                "ETag": f'W/"version-{version}"',
                "Last-Modified": formatdate(10**9 + version, usegmt=True),
            },
            "date": {"Last-Modified": formatdate(10**9 + version, usegmt=True)},
            "none": {},
        }[self.validators]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        self.remote = remote = self.server.remotes.get(self.path.partition("?")[0])
        if trouble := self.server.trouble(self.path):
            with contextlib.suppress(ConnectionError):
                FAULTS[trouble](self)
            return
        if remote is None:
            self.reply(404, b"no such file")
            return
        with remote.lock:
            name = remote.faults.pop(0) if remote.faults else "healthy"
            self.random = random.Random(f"{remote.seed} {len(remote.requests)}")
            remote.requests.append(self.headers.get("Range"))
        with contextlib.suppress(ConnectionError):  # the client may have gone
            FAULTS[name](self)

    def start(self):
        """The first byte that is asked for: 0 unless a Range applies to the present version."""
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        condition = self.headers.get("If-Range")
        matches = condition in self.remote.headers().values() and not condition.startswith("W/")
        if not asked or (condition and not matches):
            return 0
        return int(asked[1])

    def reply(self, status, body, *headers, length=None, cut=None):
        """Answer; `length` lies about the body (0: no such header), `cut` drops the connection after that."""
        self.close_connection = self.close_connection or length is not None or cut is not None
        if self.remote:
            self.remote.answers.append(status)
        self.send_response(status)
        for name, value in {**(self.remote.headers() if self.remote else {}), **dict(headers)}.items():
            self.send_header(name, value)
        if length != 0:
            self.send_header("Content-Length", str(length or len(body)))
        self.end_headers()
        self.wfile.write(body[:cut])
        self.wfile.flush()

    def reply_rest(self, **lies):
        """Answer as a server in good health does, but for `lies`."""
        start, content = self.start(), self.remote.content
        if start >= len(content):
            self.reply(416, b"", ("Content-Range", f"bytes */{len(content)}"))
        elif start:
            span = ("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.reply(206, content[start:], span, **lies)
        else:
            self.reply(200, content, **lies)

    def rest_length(self):
        return max(1, len(self.remote.content) - self.start())

    def reset(self):
        """Have the connection end in a reset, which may also overtake bytes that were sent before."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True


# --- faults -------------------------------------------------------------------------------------------------


@fault
def healthy(handler):
    handler.reply_rest()


@fault
def slow(handler):
    handler.server.closing.wait(0.1)
    handler.reply_rest()


@fault
def drop(handler):
    handler.reply_rest(cut=handler.random.randrange(handler.rest_length()))


@fault
def reset(handler):
    handler.reply_rest(cut=handler.random.randrange(handler.rest_length()))
    handler.reset()


@fault
def hang_up(handler):
    handler.reset()


@fault
def stall(handler):
    """Slow: some bytes, then none for longer than the client waits."""
    handler.reply_rest(cut=handler.random.randrange(handler.rest_length()))
    handler.server.closing.wait(handler.server.patience)


@fault
def silent(handler):
    handler.close_connection = True
    handler.server.closing.wait(handler.server.patience)


@fault
def ignore_range(handler):
    handler.reply(200, handler.remote.content)


@fault
def ignore_range_and_drop(handler):
    handler.reply(200, handler.remote.content, cut=handler.random.randrange(len(handler.remote.content)))


@fault
def too_long(handler):
    handler.reply_rest(length=handler.rest_length() + handler.random.randrange(1, 5000))


@fault
def too_short(handler):
    handler.reply_rest(length=max(1, handler.rest_length() - handler.random.randrange(1, 5000)))


@fault
def endless(handler):
    """More bytes than the file has, and no word on how many."""
    handler.reply(200, handler.remote.content + bytes(30_000), length=0)


@fault
def no_length(handler):
    handler.reply_rest(length=0)


@fault
def no_length_and_drop(handler):
    handler.reply_rest(length=0, cut=handler.random.randrange(handler.rest_length()))


@fault
def chunked(handler):
    send_chunks(handler, last=True)


@fault
def chunked_and_drop(handler):
    send_chunks(handler, last=False)


def send_chunks(handler, last):
    body, pieces = handler.remote.content, []
    while body:
        size = handler.random.randrange(1, 9000)
        pieces.append(b"%x\r\n%s\r\n" % (len(body[:size]), body[:size]))
        body = body[size:]
    sent = (
        b"".join(pieces) + b"0\r\n\r\n" if last else b"".join(pieces[: handler.random.randrange(len(pieces))])
    )
    handler.reply(200, sent, ("Transfer-Encoding", "chunked"), length=0)


@fault
def error_500(handler):
    handler.reply(500, b"oh")


@fault
def error_503(handler):
    handler.reply(503, WEB_PAGE, ("Content-Type", "text/html"), ("Retry-After", "0"))


@fault
def error_429(handler):
    handler.reply(429, b"slowly", ("Retry-After", handler.random.choice(["0", "soon", "-1", formatdate(0)])))


@fault
def error_403(handler):
    handler.reply(403, b"<Error><Code>AccessDenied</Code></Error>", ("Content-Type", "application/xml"))


@fault
def error_404(handler):
    handler.reply(404, WEB_PAGE, ("Content-Type", "text/html"))


@fault
def error_416(handler):
    handler.reply(416, b"")


@fault
def web_page(handler):
    handler.reply(200, b"<!-- proxy -->" + WEB_PAGE, ("Content-Type", "text/html; charset=utf-8"))


@fault
def web_page_in_disguise(handler):
    handler.reply(200, WEB_PAGE, ("Content-Type", "application/octet-stream"))


@fault
def empty(handler):
    handler.reply(200, b"")


@fault
def damaged(handler):
    """The right length, one byte wrong."""
    content = bytearray(handler.remote.content)
    content[len(content) // 2] ^= 0x10
    handler.reply(200, bytes(content))


@fault
def wrong_range(handler):
    """Another part of the file than asked for, truthfully labelled."""
    content = handler.remote.content
    start = handler.random.randrange(len(content))
    handler.reply(206, content[start:], ("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}"))


@fault
def other_total(handler):
    """The rest, of a file that is said to have another length."""
    start, content = handler.start(), handler.remote.content
    handler.reply(
        206, content[start:], ("Content-Range", f"bytes {start}-{len(content) + 6}/{len(content) + 7}")
    )


@fault
def no_range_header(handler):
    handler.reply(206, handler.remote.content[handler.start() :])


@fault
def compressed(handler):
    handler.reply(200, gzip.compress(handler.remote.content, 1), ("Content-Encoding", "gzip"))


@fault
def compressed_and_drop(handler):
    body = gzip.compress(handler.remote.content, 1)
    handler.reply(200, body, ("Content-Encoding", "gzip"), cut=handler.random.randrange(len(body)))


@fault
def compressed_and_damaged(handler):
    handler.reply(200, b"this is not gzip" * 100, ("Content-Encoding", "gzip"))


@fault
def redirect(handler):
    handler.reply(302, b"", ("Location", f"{handler.path.partition('?')[0]}?{handler.random.random()}"))


@fault
def change(handler):
    """The file is replaced by another version before this request is answered."""
    handler.remote.versions.append(handler.remote.next_content)
    handler.reply_rest()


@fault
def change_and_drop(handler):
    handler.remote.versions.append(handler.remote.next_content)
    handler.reply_rest(cut=handler.random.randrange(handler.rest_length()))


# --- the server ---------------------------------------------------------------------------------------------


class _Server(ThreadingHTTPServer):
    daemon_threads, block_on_close, request_queue_size = True, False, 64

    def handle_error(self, request, client_address):
        pass  # clients hang up here, by design


@contextlib.contextmanager
def serve(patience, trouble=lambda path: None):
    """A running server; `patience` is for how many seconds it is silent where that is the fault.

    trouble(path) is the name of the fault that strikes a request whatever file it is for, or None.
    Yields a function add(name, content, faults=(), **options) -> Remote.
    """
    server = _Server(("127.0.0.1", 0), Handler)
    server.remotes, server.closing, server.patience = {}, threading.Event(), patience
    server.trouble = trouble

    def add(name, content, faults=(), **options):
        remote = Remote(f"http://127.0.0.1:{server.server_port}/{name}", content, faults, **options)
        server.remotes[f"/{name}"] = remote
        return remote

    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield add
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()


def unused_port():
    """A port of loopback at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def error_of(call, *arguments, **options):
    """The one line of a failed download."""
    with pytest.raises(DownloadError) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)
