"""The grader's end of a sandbox: start it, call a submission's functions as if they were here, stop it.

`Sandbox.function` and `Sandbox.make_class` give what `eecs598.checks` takes. Their values, caches and gradients come
from the other process (see `eecs598.grading.sandbox`); autograd runs through a call as through any function.
"""

import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import torch
from torch import nn

from eecs598.checks import OutputError
from eecs598.grading import sandbox

CAPTIONER = "CaptioningRNN"


class Stopped(BaseException):
    """The submission's process is gone. It is no Exception: no check shall take it for a value's mistake."""


class Remote:
    """Something that stays in the other process, as a cache; its class is a subclass of this with its class's name."""

    def __init__(self, number):
        self.number = number


# ---------------------------------------------------------------------------------------------------------
# Starting and stopping
# ---------------------------------------------------------------------------------------------------------


def _environment():
    kept = ("PATH", "HOME", "LANG", "SYSTEMROOT", "TEMP", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
    threads = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS")}
    cuda = {"CUDA_VISIBLE_DEVICES": ""}  # the same on every machine: with a GPU, too, a submission has the CPU
    objc = {"OBJC_DISABLE_INITIALIZE_FORK_SAFETY": "YES"}  # macOS: a fork of a process with frameworks loaded
    return {name: os.environ[name] for name in kept if name in os.environ} | threads | cuda | objc


def _command(*arguments):
    return [sys.executable, "-m", "eecs598.grading.sandbox", *arguments]


class Launcher:
    """Starts processes for submissions: forks of one that has torch loaded, or, without fork, new ones.

    A context manager. secrets: files that no submission may read. memory: MB that a submission may take.
    """

    def __init__(self, memory=2048, secrets=()):
        self.memory, self.secrets, self.server = memory, [str(Path(path).resolve()) for path in secrets], None

    def __enter__(self):
        if hasattr(os, "fork"):
            self._open()
        return self

    def __exit__(self, *error):
        if self.server:
            self.channel.close()
            self.server.wait()

    def _open(self):
        self.channel, theirs = socket.socketpair()
        self.server = subprocess.Popen(
            _command("fork-server", str(theirs.fileno())), pass_fds=[theirs.fileno()], cwd=sandbox.ROOT,
            env=_environment(), stdin=subprocess.DEVNULL,
        )  # fmt: skip
        theirs.close()

    def start(self, folder):
        """A process confined to `folder`. Returns its reader, writer, output (binary files) and a function to end it.

        That function kills the process and all of its group, and returns its exit status, negative for a signal's.
        """
        order = {"folder": str(folder), "memory": self.memory, "secrets": self.secrets}
        if self.server is None:
            return self._spawn(order)
        ours, theirs = socket.socketpair()
        output, theirs_output = os.pipe()
        with contextlib.closing(theirs):
            fds = [theirs.fileno(), theirs_output]
            answer = self._order(order, fds)
            if answer is None:  # it was killed, for memory say
                self.__exit__()
                self._open()
                answer = self._order(order, fds)
        if answer is None:
            raise RuntimeError("the fork server is gone: `python -m eecs598.grading.sandbox` fails here")
        pid = answer["pid"]
        os.close(theirs_output)
        file = sandbox._Whole(os.fdopen(ours.detach(), "r+b", buffering=0))

        def end():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)  # it may not have made its group yet

        def collect():
            answer = self._order({"wait": pid})
            return answer["status"] if answer else -signal.SIGKILL

        return file, os.fdopen(output, "rb", buffering=0), end, collect

    def _order(self, order, fds=()):
        """The fork server's answer; None if it is gone."""
        with contextlib.suppress(ConnectionError):
            text = json.dumps(order).encode()
            socket.send_fds(self.channel, [text], fds) if fds else self.channel.sendall(text)
            return json.loads(self.channel.recv(1 << 16) or "null")

    def _spawn(self, order):
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            _command("once"), stdin=pipe, stdout=pipe, stderr=pipe, cwd=sandbox.ROOT, env=_environment(), bufsize=0
        )
        file = sandbox._Whole(process.stdout, process.stdin)
        sandbox.send(file, order)
        return file, process.stderr, process.kill, process.wait


class Sandbox:
    """One process with a submission in it, for at most `timeout` seconds. A context manager.

    source: the submission's bytes; files: name -> bytes of what lies beside it. Raises `Stopped` from any call once
    the process is gone, and from then on.
    """

    def __init__(self, launcher, source, timeout, files=None):
        self.launcher, self.timeout, self.late = launcher, timeout, False
        self.files = {**(files or {}), f"{sandbox.NAME}.py": source}
        self.why = None

    def __enter__(self):
        self.folder = tempfile.TemporaryDirectory(prefix="grading-", ignore_cleanup_errors=True)
        for name, data in self.files.items():
            Path(self.folder.name, name).write_bytes(data)
        self.file, output, self.end, self.collect = self.launcher.start(self.folder.name)
        self.drain = threading.Thread(target=self._drain, args=(output,), daemon=True)
        self.drain.start()
        self.timer = threading.Timer(self.timeout, self._give_up)
        self.timer.start()
        return self

    def __exit__(self, *error):
        self._finish()
        self.file.close()
        self.folder.cleanup()

    @staticmethod
    def _drain(output):
        """Read all that is printed, for nothing: who cannot print any more waits."""
        with output:
            while output.read(1 << 16):
                pass

    def _give_up(self):
        self.late = True
        self.end()

    def _finish(self):
        self.timer.cancel()
        self.end()
        if self.collect:
            status, self.collect = self.collect(), None
            self.drain.join(5)
            return status
        return None

    def ask(self, request, tensors=()):
        """Send a request, wait for its answer. Raises `Stopped`, and what the submission raised, under its name."""
        if self.why:
            raise Stopped(self.why)
        try:
            sandbox.send(self.file, request, tensors)
            reply, results = sandbox.receive(self.file)
            if "unsent" in reply:
                raise OutputError(f"returned {_plain(reply['unsent'])}")
            if "error" in reply:
                raise _their_error(reply)
            return reply, results
        except (EOFError, OSError):
            self.why = self._cause()
        except (sandbox.MessageError, TypeError, KeyError):
            self.why = "it wrote into the grader's channel"
            self._finish()
        raise Stopped(self.why)

    def _cause(self):
        if not self.late:
            self.drain.join(5)  # an end by itself: then its output ends, too; on a busy machine not at once
        status = self.collect() if not self.late and not self.drain.is_alive() else None
        if status is not None:
            self.collect = None
        self._finish()
        if self.late:
            return f"stopped after {self.timeout:g} s: does it loop, or wait for something?"
        if status is None or status == -signal.SIGKILL:
            return "it closed the grader's channel, or was killed"
        if status < 0:
            return f"it crashed ({signal.Signals(-status).name})"
        return f"it ended its process (exit status {status})"

    def load(self, names):
        """Import the submission. Returns a dict: "has", which of the names it has; "stand_ins"; "cuda"."""
        info = self.ask({"op": "load", "names": list(names)})[0]
        stand_ins = [_plain(name) for name in info["stand_ins"]][:20]
        return {"has": [name for name in names if name in info["has"]], "stand_ins": stand_ins, "cuda": info["cuda"]}

    def rebind(self, source, names, further=""):
        """Put the functions `names` of another source in the submission's place.

        further: source that then runs with `submission`, the submission's module.
        """
        self.ask({"op": "rebind", "source": source, "names": list(names), "further": further})

    def refusals(self):
        """What the submission tried and may not do, as phrases."""
        return [_plain(what) for what in self.ask({"op": "refusals"})[0]["refusals"]][:20]

    def function(self, name):
        """A function of the submission."""

        def call(*args, **kwargs):
            return _call(self, {"name": name}, args, kwargs, {})

        return call

    def make_class(self, name):
        """A class of the submission; its instances are `RemoteModule`s. Its `whole` leaves a captioner its encoder."""

        def make(*args, captioner=name == CAPTIONER, **kwargs):
            request = {"op": "make", "name": name, "args": args, "kwargs": kwargs, "captioner": captioner}
            reply, tensors = self.ask(request)
            if not reply["is_module"]:
                return type(_plain(reply["class"]), (), {})()
            return type(name, (RemoteModule,), {})(self, reply, tensors)

        make.whole = functools.partial(make, captioner=False)
        return make


def _their_error(reply):
    """An exception of the class's name with the submission's line, for `checks` to quote."""
    base = NotImplementedError if reply["undone"] else Exception
    error = type(_plain(reply["error"]), (base,), {})(_plain(reply["message"]))
    error.learners_line = _plain(reply["line"])
    return error


def _plain(text):
    """Text of a submission as one line that any terminal and file takes: it shall not look like lines of a report."""
    return "".join(c if c.isprintable() else " " for c in str(text)[:1000])


# ---------------------------------------------------------------------------------------------------------
# Calls
# ---------------------------------------------------------------------------------------------------------


def _call(box, target, args, kwargs, parameters):
    """Call in the other process. parameters: name -> tensor, placed in the module first; autograd sees them."""
    tensors = []
    request = {
        "op": "call", **target, "args": _encode(list(args), tensors), "kwargs": _encode(kwargs, tensors),
        "grad": torch.is_grad_enabled(),
    }  # fmt: skip
    if parameters:
        request["parameters"] = {name: len(tensors) + k for k, name in enumerate(parameters)}
        tensors += parameters.values()
    leaves = [torch.is_grad_enabled() and tensor.requires_grad for tensor in tensors]
    reply, results = box.ask({**request, "leaves": leaves}, tensors)
    count = len(reply["grads"])
    with torch.no_grad():
        for k, value in zip(reply["changed"], results[count:]):
            tensors[k].copy_(value)
    results = results[:count]
    if any(leaves) and any(reply["grads"]):
        results = _attach(box, reply, results, [tensor for tensor, leaf in zip(tensors, leaves) if leaf])
    return _decode(reply["value"], results)


def _attach(box, reply, results, leaves):
    """The results as autograd's outputs of the leaves."""
    driven = [k for k, wants in enumerate(reply["grads"]) if wants]

    class RemoteCall(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *inputs):
            ctx.set_materialize_grads(False)
            return tuple(results[k] for k in driven)

        @staticmethod
        def backward(ctx, *grads):
            given = [(k, grad) for k, grad in zip(driven, grads) if grad is not None]
            request = {"op": "grad", "graph": reply["graph"], "outputs": [k for k, _ in given]}
            answer, gradients = box.ask(request, [grad for _, grad in given])
            gradients = iter(gradients)
            return tuple(next(gradients) if there else None for there in answer["given"])

    attached = dict(zip(driven, RemoteCall.apply(*leaves)))
    return [attached.get(k, result) for k, result in enumerate(results)]


def _encode(value, tensors):
    if torch.is_tensor(value):
        tensors.append(value)
        return {"tensor": len(tensors) - 1}
    if isinstance(value, Remote):
        return {"object": value.number}
    if isinstance(value, dict):
        return {key: _encode(item, tensors) for key, item in value.items()}
    return [_encode(item, tensors) for item in value] if isinstance(value, (list, tuple)) else value


def _decode(value, results):
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return results[value["tensor"]]
    if "object" in value:
        return type(_plain(value["class"]), (Remote,), {})(value["object"])
    if "list" in value:
        return [_decode(item, results) for item in value["list"]]
    return tuple(_decode(item, results) for item in value["tuple"])


class _Encoder(nn.Module):
    out_channels = 0


class RemoteModule(nn.Module):
    """A module of the submission: its parameters by name, here; its methods, there, with these parameters' values.

    A captioner's image encoder is replaced there by one that hands features through (`eecs598.features.Features`).
    """

    def __init__(self, box, reply, tensors):
        super().__init__()
        self._box, self._number, self._names = box, reply["module"], reply["parameters"]
        for name, tensor in zip(self._names, tensors):
            parent, leaf = self._parent(name)
            setattr(parent, leaf, nn.Parameter(tensor, requires_grad=tensor.is_floating_point()))
        if reply["encoder"]:
            setattr(*self._parent(reply["encoder"]), _Encoder())
        for method in reply["methods"]:
            setattr(self, method, self._method(method))

    def _parent(self, name):
        """The module that holds a name, made where it is not there, and the name's last part."""
        *path, leaf = name.split(".")
        module = self
        for part in path:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module._modules[part]
        return module, leaf

    def _method(self, method):
        def call(*args, **kwargs):
            places = {name: self._parent(name) for name in self._names}
            parameters = {name: getattr(parent, leaf) for name, (parent, leaf) in places.items()}
            target = {"module": self._number, "name": method, "training": self.training}
            return _call(self._box, target, args, kwargs, parameters)

        return call

    def forward(self, *args, **kwargs):
        return self._method("forward")(*args, **kwargs)
