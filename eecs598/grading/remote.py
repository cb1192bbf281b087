"""The grader's end: call a submission's functions as if they were local, with a time limit, and trust only numbers.

`Sandbox.function` and `Sandbox.make_class` return what `eecs598.checks` takes. Values, caches and gradients come from
the other process (`eecs598.grading.sandbox`); autograd differentiates such a call like that of any function.
"""

import functools
import signal
import threading

import torch
from torch import nn

from eecs598.checks import OutputError
from eecs598.grading import NAME, messages

CAPTIONER = "CaptioningRNN"


class Stopped(BaseException):
    """The submission's process has ended. A BaseException, so that no check mistakes it for a wrong value."""


class Remote:
    """An object that stays in the other process, such as a cache. Its class is a subclass with the original's name."""

    def __init__(self, number):
        self.number = number


# ---------------------------------------------------------------------------------------------------------
# One process
# ---------------------------------------------------------------------------------------------------------


class Sandbox:
    """A process with a submission in it, for at most `timeout` seconds. A context manager.

    jail: a `jail.Jail`; source: the submission's bytes; files: name -> bytes of the files beside it. used: functions of
    torch that it called although they are to be written by hand. Once the process has ended, any call raises `Stopped`.
    """

    def __init__(self, jail, source, timeout, files=None):
        self.jail, self.timeout, self.late, self.why, self.used = jail, timeout, False, None, set()
        self.files = {**(files or {}), f"{NAME}.py": source}

    def __enter__(self):
        self.file = self.jail.start()
        self.timer = threading.Timer(self.timeout, self._give_up)
        self.timer.start()
        return self

    def __exit__(self, *error):
        self._stop_timer()
        self.file.close()
        if not self.why:
            self.jail.end()

    def _give_up(self):
        self.late = True
        self.jail.end()

    def ask(self, request, tensors=()):
        """Send a request and return its answer. Raises `Stopped`, or the submission's exception under its own name."""
        if self.why:
            raise Stopped(self.why)
        try:
            messages.send(self.file, request, tensors)
            reply, results = messages.receive(self.file)
            reply = clean(reply)
            if "unsent" in reply:
                raise OutputError(f"returned {reply['unsent']}")
            if "error" in reply:
                raise _their_error(reply)
            return reply, results
        except (EOFError, OSError):
            self._stop_timer()
            self.why = self._cause()
        except (messages.MessageError, TypeError, KeyError, RecursionError):
            self._stop_timer()
            self.why = "it wrote to the grader's channel"
            self.jail.end()
        raise Stopped(self.why)

    def _stop_timer(self):
        self.timer.cancel()
        self.timer.join()  # it may be ending the process now

    def _cause(self):
        status = None if self.late else self.jail.end()
        if self.late:
            return f"stopped after {self.timeout:.3g} s: does it loop, or wait for something?"
        if status is None or status == -9:
            return "it closed the grader's channel, or was killed"
        if status < 0:
            name = {signal.value: signal.name for signal in signal.Signals}.get(-status, f"signal {-status}")
            return f"it crashed ({name})"
        return f"it ended its process (exit status {status})"

    def load(self, names):
        """Import the submission. Returns a dict: "has", those of `names` that it defines; "stand_ins"; "cuda"."""
        contents = [torch.frombuffer(bytearray(data or b"\n"), dtype=torch.uint8) for data in self.files.values()]
        info = self.ask({"op": "load", "names": list(names), "files": list(self.files)}, contents)[0]
        stand_ins = [str(name) for name in info["stand_ins"]][:20]
        has = [name for name in names if name in info["has"]]
        return {"has": has, "stand_ins": stand_ins, "cuda": bool(info["cuda"])}

    def lend(self, source, names, further=""):
        """Replace the submission's `names` by those of `source`, then run `further` with the module as `submission`."""
        self.ask({"op": "lend", "source": source, "names": list(names), "further": further})

    def function(self, name):
        """A function of the submission."""

        def call(*args, **kwargs):
            return _call(self, {"name": name}, args, kwargs, {})

        return call

    def make_class(self, name):
        """A class of the submission, with `RemoteModule`s as instances; `.whole` makes a captioner with its encoder."""

        def make(*args, captioner=name == CAPTIONER, **kwargs):
            request = {"op": "make", "name": name, "args": args, "kwargs": kwargs, "captioner": captioner}
            reply, tensors = self.ask(request)
            if not reply["is_module"]:
                return type(str(reply["class"]), (), {})()
            return type(name, (RemoteModule,), {})(self, reply, tensors)

        make.whole = functools.partial(make, captioner=False)
        return make


def _their_error(reply):
    """An exception named like the submission's, with the line that raised it, for `checks` to quote."""
    base = NotImplementedError if reply["undone"] else Exception
    error = type(str(reply["error"]), (base,), {})(reply["message"])
    error.learners_line = str(reply["line"])
    return error


def plain(text, most=300):
    """A submission's text as one printable line, which cannot imitate lines of a report."""
    text = "".join(c if c.isprintable() else " " for c in str(text)[: most + 1])
    return text if len(text) <= most else f"{text[: most - 3]}..."


def clean(value):
    """A reply with all strings in it plain and short, including keys."""
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, dict):
        return {plain(key): clean(item) for key, item in value.items()}
    return [clean(item) for item in value] if isinstance(value, list) else value


# ---------------------------------------------------------------------------------------------------------
# Calls
# ---------------------------------------------------------------------------------------------------------


def _call(box, target, args, kwargs, parameters):
    """Call in the other process. parameters: name -> tensor, put into the module first and visible to autograd."""
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
    box.used |= {str(name)[:40] for name in reply["used"][:20]}
    count = len(reply["grads"])
    with torch.no_grad():
        for k, value in zip(reply["changed"], results[count:]):
            tensors[k].copy_(value)
    results = results[:count]
    if any(leaves) and any(reply["grads"]):
        results = _attach(box, reply, results, [tensor for tensor, leaf in zip(tensors, leaves) if leaf])
    return _decode(reply["value"], results)


def _attach(box, reply, results, leaves):
    """Attach the results to autograd's graph as functions of the leaves."""
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
        return type(str(value["class"]), (Remote,), {})(value["object"])
    if "list" in value:
        return [_decode(item, results) for item in value["list"]]
    return tuple(_decode(item, results) for item in value["tuple"])


class _Encoder(nn.Module):
    out_channels = 0


class RemoteModule(nn.Module):
    """A module of the submission. Its parameters live here; its methods run in the other process, with their values.

    There, a captioner's image encoder is replaced by one that passes features through (`eecs598.features.Features`).
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
        """Return the module that holds a dotted name, creating it if necessary, and the name's last part."""
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
