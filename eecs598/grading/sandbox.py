"""The process that a submission runs in: confined, and answering calls of its functions with numbers.

    python -m eecs598.grading.sandbox fork-server FD    on Linux and macOS: forks a process for each order, torch loaded
    python -m eecs598.grading.sandbox once              elsewhere: one process, whose orders come on standard input

The process judges nothing. It runs the submission's functions on the inputs that `eecs598.grading.remote` sends and
returns what they return; inputs, references and comparisons stay in the grader's process. So no patch of torch, of the
checks or of the channel makes a wrong number right. What the process is kept from:

- time and memory: the grader kills the process, with its process group, when its time is over. Memory, the size of a
  written file and core dumps have resource limits (memory: Linux alone; Windows has the time limit and nothing more).
- files: it works in a folder of its own. An audit hook refuses to open others for writing, to rename or to remove
  them, and to read this project (the solution, the grader) and the other submissions. On Linux from 5.13 on the
  kernel (Landlock) refuses the same, whatever asks for it.
- processes and network: the audit hook refuses to fork, to start programs, to send signals, to open sockets and to
  call ctypes. On Linux the kernel too (seccomp on x86-64 and ARM, Landlock, and where it may be had a network
  namespace without a network).

Not defended: code that works its way around the audit hook inside CPython (as a crafted code object can) meets on
Linux the kernel's refusals, elsewhere nothing. A copy of the solution in another folder of the machine can be read.
Nor is a submission kept from computing a right answer by means that the assignment forbids, such as torch.nn.LSTM.
"""

import builtins
import contextlib
import copy
import ctypes
import functools
import importlib
import importlib.machinery
import importlib.util
import json
import linecache
import os
import platform
import random
import struct
import sys
import traceback
import types
from pathlib import Path

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from eecs598 import encoders, features

ROOT = Path(__file__).resolve().parents[2]
NAME = "rnn_lstm_captioning"
LARGEST_MESSAGE = 1 << 28  # bytes, of a message's tensors together
LARGEST_HEAD = 1 << 24  # and of what is no tensor in it
LARGEST_FILE, MOST_FILES = 1 << 24, 32  # that a submission may write
DTYPES = {str(dtype): dtype for dtype in (
    torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128, torch.bool,
    torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)}  # fmt: skip


# ---------------------------------------------------------------------------------------------------------
# Messages: JSON and the bytes of tensors; nothing in them can run
# ---------------------------------------------------------------------------------------------------------


class MessageError(Exception):
    """What came through the channel is no message."""


class UnsentError(Exception):
    """A tensor cannot be sent. The message says what it is: "a tensor on the device meta, ..."."""


def pack(value, tensors=()):
    """The bytes of a message: a value that JSON takes, and tensors. Raises UnsentError for a tensor that cannot go."""
    heads, blobs, room = [], [], LARGEST_MESSAGE
    for tensor in tensors:
        tensor = tensor.detach()
        room -= tensor.numel() * tensor.element_size()
        if tensor.is_meta:
            raise UnsentError("a tensor on the device meta, without numbers: make it where the inputs are, x.new_zeros")
        if room < 0:
            raise UnsentError(f"a tensor of shape {tuple(tensor.shape)}, too large to be looked at")
        if str(tensor.dtype) not in DTYPES:
            raise UnsentError(f"a tensor of {tensor.dtype}, which is not compared: make it with dtype=x.dtype")
        dense = tensor if tensor.layout == torch.strided else tensor.to_dense()
        flat = dense.cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
        blobs.append(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
        heads.append([str(tensor.dtype), list(tensor.shape)])
    head = json.dumps([value, heads]).encode()
    return struct.pack("<I", len(head)) + head + b"".join(blobs)


def send(file, value, tensors=()):
    """Write a message. Raises UnsentError as `pack` does."""
    file.write(pack(value, tensors))
    file.flush()


def receive(file):
    """Read a message: the value and its tensors. Raises EOFError at the end, MessageError for what is none."""
    try:
        value, heads = json.loads(_read(file, struct.unpack("<I", _read(file, 4))[0], LARGEST_HEAD))
        tensors, room = [], LARGEST_MESSAGE
        for name, shape in heads:
            dtype, count = DTYPES[name], 1
            for size in shape:
                count *= size if isinstance(size, int) and size >= 0 else LARGEST_MESSAGE
            blob = _read(file, count * dtype.itemsize, room)
            room -= len(blob)
            flat = torch.frombuffer(bytearray(blob), dtype=dtype) if blob else torch.empty(0, dtype=dtype)
            tensors.append(flat.reshape(shape))
        return value, tensors
    except (ValueError, KeyError, TypeError, RuntimeError, RecursionError, UnicodeError) as error:
        raise MessageError(f"no message: {error}") from None


def _read(file, size, room=LARGEST_MESSAGE):
    if size > room:
        raise MessageError(f"a message of {size} bytes")
    data = file.read(size)
    if len(data) < size:
        raise EOFError
    return data


# ---------------------------------------------------------------------------------------------------------
# Confinement
# ---------------------------------------------------------------------------------------------------------

SECRET = ("checks", "fast", "grading", "handout")  # rooms here, with answers in them; the others may be imported
REFUSED = ("subprocess.", "socket.", "ctypes.", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork",
           "os.startfile", "os.kill", "pty.", "gc.get_", "resource.", "winreg.", "ftplib.", "urllib.",
           "webbrowser.")  # fmt: skip
CHANGING = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod",
            "os.chown", "os.utime", "os.setxattr", "os.removexattr", "os.chflags")  # fmt: skip
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def confine(folder, memory, secrets=()):
    """Bind this process, for good, to `folder` and to `memory` MB beyond what it has. Returns the list of refusals.

    secrets: files and folders that it must not read, besides the project itself.
    """
    folder, secrets = os.path.realpath(folder), {str(ROOT), *map(os.path.realpath, secrets)}
    os.chdir(folder)
    _limit_resources(memory)
    if sys.platform == "linux":
        _unshare_network()
        _landlock(folder, secrets)
        _filter_system_calls()
    refusals = []
    hook = _make_hook(folder, secrets, refusals)
    _guard_c_functions(hook)
    sys.addaudithook(hook)
    return refusals


def _limit_resources(memory):
    with contextlib.suppress(ImportError):  # Windows
        import resource

        limits = {resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: LARGEST_FILE}
        if sys.platform == "linux":
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            limits[resource.RLIMIT_AS] = pages * resource.getpagesize() + (memory << 20)
        for limit, value in limits.items():
            hard = resource.getrlimit(limit)[1]
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(limit, (value, value))


def _unshare_network():
    """A network namespace of its own, in which there is no network; where that is not allowed, none."""
    libc, network, user = ctypes.CDLL(None), 0x40000000, 0x10000000
    if libc.unshare(network):
        libc.unshare(network | user)


def _landlock(folder, secrets):
    """Landlock: write in `folder` and /dev/null alone, read no secret, run no program, open no TCP connection, signal
    nobody else.

    Source: the kernel's documentation, userspace-api/landlock. Older kernels know less of it, or nothing.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(444, None, 0, 1)
    if version < 1:
        return
    execute, write, read, make_and_remove = 1 << 0, 1 << 1, 1 << 2, sum(1 << bit for bit in range(4, 13))
    refer, truncate = (1 << 13) * (version >= 2), (1 << 14) * (version >= 3)
    tcp, scopes = 3 * (version >= 4), 3 * (version >= 6)
    handled = struct.pack("<QQQ", execute | write | read | make_and_remove | refer | truncate, tcp, scopes)
    handled = handled[: 8 if version < 4 else 16 if version < 6 else 24]
    ruleset = libc.syscall(444, handled, len(handled), 0)
    rights = dict.fromkeys(_all_but(secrets), read)
    rights |= {folder: read | write | make_and_remove | refer | truncate, os.devnull: read | write | truncate}
    for path, allowed in rights.items():
        with contextlib.suppress(OSError):  # it is gone, or not to be opened by this user anyway
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW)
            libc.syscall(445, ruleset, 1, struct.pack("<Qi", allowed, fd), 0)
            os.close(fd)
    libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS: Landlock asks for it
    libc.syscall(446, ruleset, 0)
    os.close(ruleset)


def _all_but(secrets):
    """The fewest paths below which lies all that is not secret: what Landlock does not allow, it forbids."""
    above = {str(parent) for path in secrets for parent in Path(path).parents}
    for folder in above - secrets:
        with contextlib.suppress(OSError):
            yield from (entry.path for entry in os.scandir(folder) if entry.path not in above | secrets)
    yield from _public_paths()


def _public_paths():
    """What a submission may read though it lies among secrets: Python, and the project's modules that it may import."""
    yield from _python_paths()
    yield from (str(path) for path in (ROOT / "eecs598").iterdir() if path.name.split(".")[0] not in SECRET)


def _python_paths():
    return [prefix for prefix in {sys.prefix, sys.base_prefix} if not ROOT.is_relative_to(os.path.realpath(prefix))]


def _filter_system_calls():
    """seccomp: no new process, no program, no socket, no other process's memory, no signal to one.

    Threads may be started. Numbers: the kernel's tables, arch/x86/entry/syscalls and include/uapi/asm-generic.
    """
    thread, refused, unknown, allowed = 0x10000, 0x50000 | 1, 0x50000 | 38, 0x7FFF0000  # EPERM, ENOSYS
    tables = {
        "x86_64": (0xC000003E, 56, 234, (57, 58, 59, 322, 41, 53, 101, 62, 200, 310, 311, 272, 308)),
        "aarch64": (0xC00000B7, 220, 131, (221, 281, 198, 199, 117, 129, 130, 270, 271, 97, 268)),
    }
    if platform.machine() not in tables:
        return
    architecture, clone, tgkill, others = tables[platform.machine()]
    load, equal, at_least, any_bit = 0x20, 0x15, 0x35, 0x45
    refuse, allow, disown = ((0x06, 0, 0, answer) for answer in (refused, allowed, unknown))
    program = [  # a step: what it does, how many to skip if so, if not, its number
        (load, 0, 0, 4), (equal, 1, 0, architecture), refuse,
        (load, 0, 0, 0), (at_least, 0, 1, 0x40000000), refuse,  # x86-64's second table
        (equal, 0, 4, clone), (load, 0, 0, 16), (any_bit, 0, 1, thread), allow, refuse,
        (equal, 0, 1, 435), disown,  # clone3: the C library then calls clone
        (equal, 0, 4, tgkill), (load, 0, 0, 16), (equal, 0, 1, os.getpid()), allow, refuse,
        *(step for number in others for step in ((equal, 0, 1, number), refuse)),
        allow,
    ]  # fmt: skip
    steps = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *step) for step in program))
    header = ctypes.create_string_buffer(struct.pack("@HP", len(program), ctypes.addressof(steps)))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(38, 1, 0, 0, 0)
    libc.prctl(22, 2, header, 0, 0)  # PR_SET_SECCOMP, with a filter


def _guard_c_functions(hook):
    """Functions in C that open files or start processes where no audit event says so."""

    def guard(owner, name, event, *further):
        original = getattr(owner, name, None)

        def guarded(*args, **kwargs):
            target = args[0] if args else kwargs.get("filename")
            if event != "open" or isinstance(target, (str, os.PathLike)):
                hook(event, (target, *further))
            return original(*args, **kwargs)

        if original is not None:
            setattr(owner, name, guarded)

    guard(torch._C, "PyTorchFileWriter", "open", "w", WRITING)
    guard(torch._C, "PyTorchFileReader", "open", "r", 0)
    guard(torch, "from_file", "open", "r", 0)
    guard(torch.UntypedStorage, "from_file", "open", "r", 0)
    for module in ("_posixsubprocess", "subprocess"):
        if module in sys.modules:
            guard(sys.modules[module], "fork_exec" if module[0] == "_" else "_fork_exec", "os.fork")


def _make_hook(folder, secrets, refusals):
    realpath, fspath, separator, devnull = os.path.realpath, os.fspath, os.sep, os.devnull
    package, python = str(ROOT / "eecs598") + separator, [realpath(path) for path in _python_paths()]
    written = set()

    def within(path, folders):
        return any(path == folder or path.startswith(folder + separator) for folder in folders)

    def inside(path):
        return isinstance(path, int) or within(realpath(os.fsdecode(fspath(path))), (folder, devnull))

    def secret(path):
        if isinstance(path, int):
            return False
        path = realpath(os.fsdecode(fspath(path)))
        room = path.removeprefix(package).partition(separator)[0].partition(".")[0]
        public = path.startswith(package) and room not in SECRET
        return within(path, secrets) and not public and not within(path, (folder, *python))

    def refuse(what):
        if what not in refusals and len(refusals) < 20:
            refusals.append(what)
        raise PermissionError(f"a submission may not {what}")

    def hook(event, args):
        if event == "open":
            path, _, flags = args
            if isinstance(flags, int) and flags & WRITING:
                if not inside(path):
                    refuse(f"write the file {path}")
                written.add(path)
                if len(written) > MOST_FILES:
                    refuse(f"write more than {MOST_FILES} files")
            if secret(path):
                refuse(f"read the file {path}")
        elif event == "import":
            top, _, module = args[0].partition(".")
            if top == "eecs598" and module.partition(".")[0] in SECRET:
                refuse(f"import {args[0]}")
        elif event.startswith(REFUSED):
            refuse(f"call {event}")
        elif event.startswith(CHANGING):
            for path in args[: 2 if event.startswith(("os.rename", "os.link", "os.symlink")) else 1]:
                if not inside(path):
                    refuse(f"call {event} on {path}")

    return hook


# ---------------------------------------------------------------------------------------------------------
# What a submission may take for granted
# ---------------------------------------------------------------------------------------------------------

ABSENT = ("a4_helper", "a5_helper", "helpers", "coutils", "google", "cv2", "seaborn", "IPython", "matplotlib", "tqdm")


class Inert:
    """Accepts any attribute, call and iteration, and does nothing."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *args, **kwargs):
        return self

    def __iter__(self):
        return iter(())


class StandIns:
    """A finder of last resort: for the course's helpers, and what is often imported and not needed, a stand-in.

    It holds what the course's helper files pass on to `import *`, and functions that fail when they are called; those
    of Colab and IPython, which mount a drive or set a magic, do nothing.
    """

    def __init__(self):
        self.used = []

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in ABSENT:
            return None
        self.used.append(name)
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        shared = {"torch": torch, "nn": nn, "F": nn.functional, "random": random, "os": os}
        module = types.ModuleType(spec.name)
        module.__dict__.update(shared, __all__=list(shared), __getattr__=self._missing(spec.name))
        return module

    def exec_module(self, module):
        pass

    @staticmethod
    def _missing(module):
        def missing(name):
            if name.startswith("__"):
                raise AttributeError(name)
            if module.partition(".")[0] in ("google", "IPython"):
                return Inert()

            def call(*args, **kwargs):
                raise RuntimeError(f"{module}.{name} is not to be had while grading")

            return call

        return missing


def lend_regnet(ready=0):
    """From now on torchvision's RegNetX-400MF is a copy of one with random weights, whatever weights are asked for.

    A captioner is checked on features that are given. So nothing is downloaded here, and building one is quick.
    ready: copies made beforehand; every process forked from this one has them, and copies more once it has used them.
    """
    models = encoders.import_torchvision().models
    network = models.regnet_x_400mf(weights=None)
    # The published starter code does this: what it imports is then there in every process forked from this one.
    feature_extraction = importlib.import_module("torchvision.models.feature_extraction")
    feature_extraction.create_feature_extractor(network, return_nodes=["trunk_output.block4"])
    copies = [copy.deepcopy(network) for _ in range(ready)]

    def regnet_x_400mf(*args, **kwargs):
        return copies.pop() if copies else copy.deepcopy(network)

    models.regnet_x_400mf = models.regnet.regnet_x_400mf = regnet_x_400mf


class CudaOnCpu(TorchFunctionMode):
    """`.cuda()` and device="cuda" give the CPU: for files that assume a GPU, on a machine without one."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (torch.Tensor.cuda, nn.Module.cuda):
            return args[0]
        kwargs = {key: self._on_cpu(value) for key, value in (kwargs or {}).items()}
        result = function(*map(self._on_cpu, args), **kwargs)
        is_cpu = isinstance(result, torch.device) and result.type == "cpu"
        return torch.device("cpu") if is_cpu else result  # not cpu:0, from torch.device("cuda", 0)

    @staticmethod
    def _on_cpu(value):
        if isinstance(value, torch.device) and value.type == "cuda":
            return torch.device("cpu")
        if isinstance(value, str):
            return "cpu" if value.partition(":")[0] == "cuda" else value.replace("torch.cuda.", "torch.")
        return value


def lend_cuda():
    """From now on what else such files call of torch.cuda does nothing, or gives the CPU's."""
    for name in ("synchronize", "set_device", "init"):
        setattr(torch.cuda, name, lambda *args, **kwargs: None)
    torch.cuda.current_device, torch.cuda.get_device_name = lambda: 0, lambda *args: "CPU"
    torch.cuda.device = lambda *args: contextlib.nullcontext()
    for kind in ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool"):
        setattr(torch.cuda, f"{kind}Tensor", getattr(torch, f"{kind}Tensor"))


# ---------------------------------------------------------------------------------------------------------
# The server
# ---------------------------------------------------------------------------------------------------------


class Server:
    """Answers the grader's requests: each a dict with "op", and tensors. The other end is `eecs598.grading.remote`."""

    def __init__(self, file):
        self.file, self.module = file, None
        self.objects, self.graphs, self.made = [], [], {}

    def run(self):
        """Answer until the channel closes."""
        while True:
            try:
                request, tensors = receive(self.file)
            except EOFError:
                return
            try:
                answer = pack(*getattr(self, f"do_{request['op']}")(request, tensors))
            except UnsentError as error:
                answer = pack({"unsent": str(error)})
            except BaseException as error:  # SystemExit, too: nothing that a submission raises ends the server
                answer = self._packed_error(error)
            self.file.write(answer)
            self.file.flush()

    def _packed_error(self, error):
        try:
            return pack(self._describe(error))
        except BaseException as another:  # the submission's exception may fail at being looked at
            kind = type(another).__name__
            return pack({"error": "Exception", "message": f"one that cannot be shown: {kind}", "line": "", "undone": 0})

    def _describe(self, error):
        """An exception as a message: its class, its first line, and the submission's line that raised it."""
        text = (str(error).strip() or "no message").splitlines()[0][:500]
        kind = "SystemExit" if isinstance(error, SystemExit) else type(error).__name__
        path = self.module.__file__ if self.module else ""
        if isinstance(error, SyntaxError):
            return {"error": kind, "message": f"{error.msg}, line {error.lineno}", "line": "", "undone": False}
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
        line = ""
        if frames:
            text_of_line = frames[-1].line or linecache.getline(path, frames[-1].lineno).strip()
            line = f"; line {frames[-1].lineno} of {Path(path).name}: {text_of_line}"
        return {"error": kind, "message": text, "line": line, "undone": isinstance(error, NotImplementedError)}

    def do_load(self, request, tensors):
        """Import the submission. Returns which of the names asked for it has."""
        finder = StandIns()
        builtins.get_ipython = Inert()  # which a notebook saved as a file calls
        sys.meta_path.append(finder)
        sys.path.insert(0, os.getcwd())
        path = os.path.join(os.getcwd(), f"{NAME}.py")
        text = Path(path).read_bytes()
        spec = importlib.util.spec_from_file_location(NAME, path)
        self.module = sys.modules[NAME] = importlib.util.module_from_spec(spec)
        cuda = b"cuda" in text and not torch.cuda.is_available()
        if cuda:
            CudaOnCpu().__enter__()
            lend_cuda()
        torch.manual_seed(0)
        spec.loader.exec_module(self.module)
        return {"has": [name for name in request["names"] if hasattr(self.module, name)],
                "stand_ins": finder.used, "cuda": cuda}, []  # fmt: skip

    def do_rebind(self, request, tensors):
        """Put functions of `source` in the submission's place; run `further` with it."""
        ours = types.ModuleType("underneath")
        exec(compile(request["source"], "underneath", "exec"), ours.__dict__)
        for name in request["names"]:
            setattr(self.module, name, getattr(ours, name))
        exec(request["further"], {"torch": torch, "submission": self.module})
        return {}, []

    def do_call(self, request, tensors):
        """Call a function, or a method of a module. Tensors come back by value, other objects by number."""
        tensors = [t.requires_grad_(bool(wants)) for t, wants in zip(tensors, request["leaves"])]
        before = [t.detach().clone() for t in tensors]
        args, kwargs = self._decode(request["args"], tensors), self._decode(request["kwargs"], tensors)
        function = self._placed(request, tensors) if "module" in request else getattr(self.module, request["name"])
        with torch.set_grad_enabled(request["grad"]):
            raw = function(*args, **kwargs)
        results = []
        value = self._encode(raw, results)
        self.graphs.append((results, tensors))
        changed = [k for k, (old, t) in enumerate(zip(before, tensors)) if not _same(old, t.detach())]
        reply = {"value": value, "graph": len(self.graphs) - 1, "changed": changed,
                 "grads": [t.requires_grad for t in results]}  # fmt: skip
        return reply, [*results, *(tensors[k] for k in changed)]

    def do_grad(self, request, tensors):
        """Autograd's gradients of an earlier call: from the results' gradients to the inputs'."""
        results, leaves = self.graphs[request["graph"]]
        outputs = [results[k] for k in request["outputs"]]
        wrt = [leaf for leaf in leaves if leaf.requires_grad]
        grads = torch.autograd.grad(outputs, wrt, tensors, allow_unused=True, retain_graph=True)
        return {"given": [grad is not None for grad in grads]}, [grad for grad in grads if grad is not None]

    def do_make(self, request, tensors):
        """Build a module. Returns what `remote.RemoteModule` mirrors. A captioner, which takes long, is built once."""
        known = json.dumps(request) if request["captioner"] else None
        if known in self.made:
            return self.made[known]
        module = self._build(request)
        self.objects.append(module)
        reply = {"module": len(self.objects) - 1, "is_module": isinstance(module, nn.Module), "encoder": None}
        if not reply["is_module"]:
            return reply | {"class": type(module).__name__}, []
        if request["captioner"]:
            with contextlib.suppress(ValueError):
                parent, attribute = encoders.find_encoder(module)
                names = {id(m): name for name, m in module.named_modules()}
                reply["encoder"] = f"{names[id(parent)]}.{attribute}".lstrip(".")
                channels = encoders.get_encoder(module).out_channels
                encoders.set_encoder(module, features.Features(torch.float32, channels))
        parameters = dict(module.named_parameters())
        reply["methods"] = [name for name in ("step_forward", "sample") if hasattr(module, name)]
        answer = reply | {"parameters": list(parameters)}, [p.detach().clone() for p in parameters.values()]
        if known:
            self.made[known] = answer
        return answer

    def _build(self, request):
        """An instance; of a captioner without its encoder, whose building takes longest, where it can do without."""
        made = functools.partial(getattr(self.module, request["name"]), *request["args"], **request["kwargs"])
        if request["captioner"]:
            channels = request["kwargs"]["input_dim"]
            with contextlib.suppress(Exception), features.without_image_encoder(made.func, channels):
                return made()
        return made()

    def _placed(self, request, tensors):
        """A method of a module, once the tensors that came along have their places among its parameters."""
        module = self.objects[request["module"]].train(request["training"])
        for k, (name, index) in enumerate(request["parameters"].items()):
            if k == 0:
                module.to(tensors[index].dtype)
            parent, _, leaf = name.rpartition(".")
            module.get_submodule(parent)._parameters[leaf] = tensors[index]
        return module if request["name"] == "forward" else getattr(module, request["name"])

    def _decode(self, value, tensors):
        if isinstance(value, dict) and "tensor" in value:
            return tensors[value["tensor"]]
        if isinstance(value, dict) and "object" in value:
            return self.objects[value["object"]]
        if isinstance(value, dict):
            return {key: self._decode(item, tensors) for key, item in value.items()}
        return [self._decode(item, tensors) for item in value] if isinstance(value, list) else value

    def _encode(self, value, results, top=True):
        if torch.is_tensor(value):
            results.append(value)
            return {"tensor": len(results) - 1}
        if top and isinstance(value, (tuple, list)):
            items = [self._encode(item, results, top=False) for item in value]
            return {"tuple" if isinstance(value, tuple) else "list": items}
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        self.objects.append(value)
        return {"object": len(self.objects) - 1, "class": type(value).__name__}


def _same(old, new):
    return old.shape == new.shape and torch.equal(old.nan_to_num(), new.nan_to_num())


# ---------------------------------------------------------------------------------------------------------
# Starting it
# ---------------------------------------------------------------------------------------------------------


def _serve(file, order):
    """One submission's process, from here to its end."""
    torch.set_num_threads(1)
    sys.dont_write_bytecode = True
    # The project itself, and where it is installed in development mode: the solution is not to be imported.
    sys.path[:] = [entry for entry in sys.path if entry and Path(entry).resolve() != ROOT]
    sys.meta_path[:] = [finder for finder in sys.meta_path if "__editable__" not in getattr(finder, "__module__", "")]
    server = Server(file)
    refusals = confine(order["folder"], order["memory"], order["secrets"])
    server.do_refusals = lambda request, tensors: ({"refusals": refusals}, [])
    server.run()


def _fork_server(fd):
    """Fork a process for each order: {"folder", "memory", "secrets"} with the channel's end and the output's."""
    import signal
    import socket

    channel = socket.socket(fileno=fd)
    while True:
        text, fds, _, _ = socket.recv_fds(channel, 1 << 16, 2)
        if not text:
            return
        order = json.loads(text)
        if "wait" in order:  # the grader has killed it, or it has ended
            status = os.waitpid(order["wait"], 0)[1]
            channel.sendall(json.dumps({"status": os.waitstatus_to_exitcode(status)}).encode())
            continue
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.setsid()
            channel.close()
            for target in (1, 2):
                os.dup2(fds[1], target)
            os.close(fds[1])
            file = os.fdopen(fds[0], "r+b", buffering=0)
            _serve(_Whole(file), order)
            os._exit(0)
        for passed in fds:
            os.close(passed)
        channel.sendall(json.dumps({"pid": pid}).encode())


class _Whole:
    """A raw file whose read gives all that was asked for, up to the end."""

    def __init__(self, reader, writer=None):
        self.reader, self.writer = reader, writer or reader

    def read(self, size):
        parts = []
        while size > 0 and (part := self.reader.read(min(size, 1 << 20))):
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def write(self, data):
        view = memoryview(data)
        while view:
            view = view[self.writer.write(view) :]

    def flush(self):
        self.writer.flush()

    def close(self):
        self.reader.close()
        self.writer.close()


def _once():
    """One process, for systems without fork: orders on standard input, answers on standard output."""
    file = _Whole(os.fdopen(os.dup(0), "rb", buffering=0), os.fdopen(os.dup(1), "wb", buffering=0))
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(2, 1)
    _serve(file, receive(file)[0])


def main(arguments):
    torch.set_num_threads(1)
    for name in ("bridge", "grad", "utils"):  # what a submission may import, loaded before it is confined
        importlib.import_module(f"eecs598.{name}")
    forks = arguments[0] == "fork-server"
    lend_regnet(ready=4 if forks else 0)
    if not forks:
        _once()
    else:
        _fork_server(int(arguments[1]))


if __name__ == "__main__":
    main(sys.argv[1:])
