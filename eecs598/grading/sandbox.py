"""The process that a submission runs in: it calls the submission's functions and returns their results as numbers.

    python -m eecs598.grading.sandbox fork-server FD {jailed|loose}   fork a process for each part, with torch loaded
    python -m eecs598.grading.sandbox once MB                         one process for one part, without fork (Windows)

This process does not judge. It runs the submission's functions on inputs that `eecs598.grading.remote` sends and
returns their results; references and comparisons stay in the grader's process, so patching torch, the checks or the
channel cannot turn a wrong number into a right one. The solution's text never enters this process. The jail that it is
started in (`eecs598.grading.jail`) isolates it from the rest of the machine. Before importing the submission, it limits
its own memory, files and threads, and installs an allow-list of system calls.
"""

import builtins
import contextlib
import functools
import gc
import importlib
import importlib.util
import json
import linecache
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
import types
from pathlib import Path

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from eecs598 import ROOT, encoders, features
from eecs598.grading import NAME, scan
from eecs598.grading.messages import READY, UnsentError, Whole, pack, receive
from eecs598.grading.standins import CudaOnCpu, Inert, StandIns, lend_cuda, lend_regnet

try:  # the binding of libseccomp; without it, or without the library, system calls are not filtered
    import pyseccomp
except (ImportError, OSError, RuntimeError):
    pyseccomp = None

LARGEST_FILE, MOST_FILES, MOST_THREADS = 1 << 24, 256, 32


# ---------------------------------------------------------------------------------------------------------
# Limits
# ---------------------------------------------------------------------------------------------------------

# The system calls that Python and torch need to compute, start threads and use files in their own folder. None of them
# creates a process, a socket or shared memory, affects another process, mounts, or changes a file's mode or time.
ALLOWED = """
    read write readv writev pread64 pwrite64 lseek close close_range dup dup2 dup3 pipe pipe2 poll ppoll select pselect6
    open openat openat2 creat stat fstat lstat newfstatat statx access faccessat faccessat2 readlink readlinkat statfs
    fstatfs getcwd chdir fchdir getdents getdents64 mkdir mkdirat rmdir unlink unlinkat rename renameat renameat2
    truncate ftruncate fallocate fsync fdatasync flock fadvise64 umask fcntl epoll_create1 epoll_ctl epoll_wait
    epoll_pwait eventfd2 mmap mprotect munmap mremap madvise brk mincore msync futex futex_waitv set_robust_list
    get_robust_list rseq set_tid_address membarrier restart_syscall sched_yield sched_getaffinity getcpu getpriority
    nanosleep clock_nanosleep clock_gettime clock_getres gettimeofday time times getitimer alarm rt_sigaction
    rt_sigprocmask rt_sigreturn rt_sigpending rt_sigsuspend rt_sigtimedwait sigaltstack getpid getppid gettid getuid
    geteuid getgid getegid getresuid getresgid getgroups getpgrp getpgid getsid getrlimit getrusage sysinfo uname
    getrandom arch_prctl exit exit_group
"""
CLONE_THREAD = 0x10000


def limit(memory):
    """Limit this process for good: `memory` MB beyond what it has, few files and threads, a list of system calls."""
    with contextlib.suppress(ImportError):  # Windows
        import resource

        limits = {resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: LARGEST_FILE, resource.RLIMIT_NOFILE: MOST_FILES}
        if sys.platform == "linux":
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            limits[resource.RLIMIT_AS] = pages * resource.getpagesize() + (memory << 20)
            limits |= {resource.RLIMIT_NPROC: MOST_THREADS, resource.RLIMIT_MSGQUEUE: 0, resource.RLIMIT_MEMLOCK: 0}
        for name, value in limits.items():
            hard = resource.getrlimit(name)[1]
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(name, (value, value))
    if pyseccomp:
        _allow_system_calls()


def _allow_system_calls():
    refused = pyseccomp.SyscallFilter(pyseccomp.ERRNO(1))  # EPERM
    argument, equal = pyseccomp.Arg, pyseccomp.EQ
    for name in ALLOWED.split():
        if pyseccomp.resolve_syscall(pyseccomp.system_arch(), name) >= 0:  # others do not exist on this processor
            refused.add_rule(pyseccomp.ALLOW, name)
    refused.add_rule(pyseccomp.ALLOW, "clone", argument(0, pyseccomp.MASKED_EQ, CLONE_THREAD, CLONE_THREAD))
    refused.add_rule(pyseccomp.ERRNO(38), "clone3")  # ENOSYS: the C library then calls clone
    refused.add_rule(pyseccomp.ALLOW, "tgkill", argument(0, equal, os.getpid()))  # to abort itself
    refused.add_rule(pyseccomp.ALLOW, "prlimit64", argument(0, equal, 0), argument(2, equal, 0))  # to read limits
    for request in (0x5401, 0x5451, 0x5450, 0x541B):  # TCGETS, FIOCLEX, FIONCLEX, FIONREAD: used to open files
        refused.add_rule(pyseccomp.ALLOW, "ioctl", argument(1, equal, request))
    refused.load()


# ---------------------------------------------------------------------------------------------------------
# The server
# ---------------------------------------------------------------------------------------------------------


class Watch(TorchFunctionMode):
    """Records which functions of torch a submission calls that compute what is to be written by hand.

    It sees calls that `eecs598.grading.scan`, which knows their names, does not find in the text. They can be hidden
    from it on purpose.
    """

    def __init__(self):
        super().__init__()
        self.used = set()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        if name in scan.AUTOGRAD or name in scan.CELLS:
            self.used.add(name)
        return function(*args, **(kwargs or {}))


class Server:
    """Answers the grader's requests, each a dict with "op" and tensors. The other end is `eecs598.grading.remote`."""

    def __init__(self, file):
        self.file, self.module = file, None
        self.objects, self.graphs, self.made, self.watch = [], [], {}, Watch()

    def run(self):
        """Answer until the channel closes."""
        while True:
            try:
                request, tensors = receive(self.file)
            except EOFError:
                return
            self.file.write(self.answer(request, tensors))
            self.file.flush()

    def answer(self, request, tensors):
        """The bytes of the answer to a request."""
        try:
            return pack(*getattr(self, f"do_{request['op']}")(request, tensors))
        except UnsentError as error:
            return pack({"unsent": str(error)})
        except BaseException as error:  # SystemExit too: no exception of a submission may end the server
            return self._packed_error(error)

    def _packed_error(self, error):
        try:
            return pack(self._describe(error))
        except BaseException as another:  # the submission's exception may raise when it is inspected
            kind = type(another).__name__
            return pack({"error": "Exception", "message": f"one that cannot be shown: {kind}", "line": "", "undone": 0})

    def _describe(self, error):
        """Describe an exception: its class, the first line of its message, and the submission's line that raised it."""
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
        """Write the submission's files here and import it. Returns which of the requested names it defines."""
        for name, data in zip(request["files"], tensors):
            Path(name).write_bytes(data.numpy().tobytes())
        finder = StandIns()
        builtins.get_ipython = Inert()  # which a notebook saved as a file calls
        sys.meta_path.append(finder)
        sys.path.insert(0, os.getcwd())
        path = os.path.join(os.getcwd(), f"{NAME}.py")
        spec = importlib.util.spec_from_file_location(NAME, path)
        self.module = sys.modules[NAME] = importlib.util.module_from_spec(spec)
        sent = b"".join(data.numpy().tobytes() for data in tensors)
        if replaced := b"cuda" in sent and not torch.cuda.is_available():
            CudaOnCpu().__enter__()
            lend_cuda()
        torch.manual_seed(0)
        spec.loader.exec_module(self.module)
        return {"has": [name for name in request["names"] if hasattr(self.module, name)],
                "stand_ins": finder.used, "cuda": replaced and b"is_available" not in sent}, []  # fmt: skip

    def do_lend(self, request, tensors):
        """Replace functions of the submission by those of `source`, then run `further` with it."""
        lent = types.ModuleType("underneath")
        exec(compile(request["source"], "underneath", "exec"), lent.__dict__)
        for name in request["names"]:
            setattr(self.module, name, getattr(lent, name))
        exec(request["further"], {"torch": torch, "submission": self.module})
        return {}, []

    def do_call(self, request, tensors):
        """Call a function, or a method of a module. Tensors are returned by value, other objects by number."""
        tensors = [t.requires_grad_(bool(wants)) for t, wants in zip(tensors, request["leaves"])]
        before = [t.detach().clone() for t in tensors]
        args, kwargs = self._decode(request["args"], tensors), self._decode(request["kwargs"], tensors)
        function = self._placed(request, tensors) if "module" in request else getattr(self.module, request["name"])
        with torch.set_grad_enabled(request["grad"]), self.watch:
            raw = function(*args, **kwargs)
        results = []
        value = self._encode(raw, results)
        self.graphs.append((results, tensors))
        changed = [k for k, (old, t) in enumerate(zip(before, tensors)) if not _same(old, t.detach())]
        reply = {"value": value, "graph": len(self.graphs) - 1, "changed": changed,
                 "grads": [t.requires_grad for t in results], "used": sorted(self.watch.used)}  # fmt: skip
        return reply, [*results, *(tensors[k] for k in changed)]

    def do_grad(self, request, tensors):
        """Autograd's gradients of an earlier call: from the results' gradients to the inputs'."""
        results, leaves = self.graphs[request["graph"]]
        outputs = [results[k] for k in request["outputs"]]
        wrt = [leaf for leaf in leaves if leaf.requires_grad]
        grads = torch.autograd.grad(outputs, wrt, tensors, allow_unused=True, retain_graph=True)
        return {"given": [grad is not None for grad in grads]}, [grad for grad in grads if grad is not None]

    def do_make(self, request, tensors):
        """Build a module. Returns what `remote.RemoteModule` mirrors. Captioners are slow to build and are reused."""
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
        """Build an instance; a captioner without its image encoder, the slowest part, if it can do without."""
        made = functools.partial(getattr(self.module, request["name"]), *request["args"], **request["kwargs"])
        if request["captioner"]:
            channels = request["kwargs"]["input_dim"]
            with contextlib.suppress(Exception), features.without_image_encoder(made.func, channels):
                return made()
        return made()

    def _placed(self, request, tensors):
        """Return a method of a module after setting its parameters to the tensors of the request."""
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


def _serve(file, memory, folder):
    """Serve one part until its end, in this folder, which is its own."""
    torch.set_num_threads(1)
    sys.dont_write_bytecode = True
    # The solution must not be importable, neither from the project's folder nor from an editable installation.
    sys.path[:] = [entry for entry in sys.path if entry and Path(entry).resolve() != ROOT]
    sys.meta_path[:] = [finder for finder in sys.meta_path if "__editable__" not in getattr(finder, "__module__", "")]
    os.chdir(folder)
    limit(memory)
    Server(file).run()


def _fork_server(control, jailed):
    """Answer orders: one with the end of a channel forks a process, one without ends that process."""
    pid, folder = None, None
    control.sendall(READY)
    while True:
        order, fds, _, _ = socket.recv_fds(control, 64, 1)
        if not order:
            return
        if not fds:
            status = _end(pid, jailed) if pid else 0
            if folder:
                _clear(Path.cwd() if jailed else folder)
            control.sendall(str(status).encode())
            pid, folder = None, None
            continue
        folder = Path(tempfile.mkdtemp(dir=os.getcwd()))
        pid = os.fork()
        if pid == 0:
            control.close()
            _serve(Whole(os.fdopen(fds[0], "r+b", buffering=0)), int(order), folder)
            os._exit(0)
        os.close(fds[0])
        control.sendall(b"forked")


def _end(pid, jailed):
    """End a part's process and everything it started. Returns its exit status, -9 if it had to be killed."""
    deadline = time.monotonic() + 0.5
    while not (ended := os.waitpid(pid, os.WNOHANG))[0] and time.monotonic() < deadline:
        time.sleep(0.002)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if jailed and os.getpid() == 2:  # in a process namespace: all except this process and bubblewrap's
            os.kill(-1, signal.SIGKILL)
        else:
            os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(ended[1] if ended[0] else os.waitpid(pid, 0)[1])


def _clear(folder):
    """Delete what a part left in a folder, so that the next one has the whole disk again."""
    for item in os.listdir(folder) if folder.is_dir() else ():  # the part may have removed it
        path = folder / item
        with contextlib.suppress(OSError, RecursionError):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def main(arguments):
    torch.set_num_threads(1)
    for name in ("bridge", "grad", "utils"):  # submissions may import these; loaded once for all parts
        importlib.import_module(f"eecs598.{name}")
    forks = arguments[0] == "fork-server"
    if forks:
        channel = socket.socket(fileno=int(arguments[1]))
    else:  # the channel is standard input and output, where nothing else may be printed
        channel = Whole(os.fdopen(os.dup(0), "rb", buffering=0), os.fdopen(os.dup(1), "wb", buffering=0))
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    lend_regnet(ready=4 if forks else 0)
    if forks:
        gc.freeze()  # or the garbage collector of each fork would go through all that is loaded here
        os.dup2(null, 2)
        _fork_server(channel, arguments[2] == "jailed")
    else:
        channel.write(READY)
        _serve(channel, int(arguments[1]), os.getcwd())


if __name__ == "__main__":
    main(sys.argv[1:])
