"""The jail that a submission runs in. bubblewrap does the confining.

Each submission gets a jail with its own process, network, IPC, host name, mount and user namespaces. The jail has,
read-only, Python, the system libraries and the modules of this project that students have; a /tmp of DISK bytes; and a
process of an unprivileged user, without capabilities or a way to gain any, which has loaded torch and forks a process
for each part. `find_confinement` finds out what this machine allows, and describes it in a line for every report.
"""

import contextlib
import functools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from eecs598 import ROOT
from eecs598.grading import NAME
from eecs598.grading.messages import READY, Whole

NOBODY = 65534
DISK = 64 << 20  # bytes of /tmp
OPENING, ANSWERING = 120, 10  # seconds: to load torch on a busy machine; for an answer of the fork server
SECRET = ("checks", "fast", "grading", "handout")  # packages with answers in them; the others may be imported
PUBLIC = ("__init__.py", "messages.py", "sandbox.py", "scan.py", "standins.py")  # of eecs598/grading
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache", "/etc/ld.so.conf",
          "/etc/ld.so.conf.d", "/etc/alternatives", "/etc/localtime")  # fmt: skip
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
SPACES = ("--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try")
TO_NOBODY = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs",
             "--bounding-set=-all", "--inh-caps=-all", "--")  # fmt: skip
BUS = ("XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS")  # how systemd-run finds a user's systemd
OWN_USERS = ("unshare", "--user", "--map-current-user", "--")


class ConfinementError(ValueError):
    """This machine cannot confine a submission. The message says why, and what can be done."""


class Confinement(NamedTuple):
    """A way to start a submission's process: the command that precedes Python's, and a phrase that describes it.

    user: the id of the user to start it as, None for the grader's own; jailed: whether it runs in a jail.
    """

    command: tuple
    says: str
    user: int | None = None
    jailed: bool = True


def find_confinement(memory, secrets=(), unconfined=False):
    """Return the best `Confinement` that this machine allows.

    memory: limit in MB, beyond what Python itself takes; secrets: files and folders that submissions must not read.
    Raises ConfinementError if there is no jail, unless `unconfined`.
    """
    why = "it runs only on Linux" if sys.platform != "linux" else "it is not installed"
    limited, limits = _memory_limit(memory), f"system calls by {_filter()}"
    if sys.platform == "linux" and (bwrap := shutil.which("bwrap")):
        paths, tool = _paths(secrets), subprocess.run([bwrap, "--version"], capture_output=True, text=True)
        for says, options, inner in _ways():
            command = (*limited, bwrap, *options, *paths, "--", *inner)
            failed = _try(command)
            if not failed:
                limits += f", memory by {'a cgroup and limits' if limited else 'limits'}"
                return Confinement(command, f"confined by {tool.stdout.strip()} {says}, {limits}")
            why = f"it is not allowed to ({failed})"
    if not unconfined:
        advice = "install the package bubblewrap, or read each file first and add --unconfined"
        why = why.removeprefix("bubblewrap ")
        raise ConfinementError(f"bubblewrap cannot confine submissions here, {why}: {advice}")
    user = NOBODY if hasattr(os, "geteuid") and os.geteuid() == 0 and not _try((), NOBODY) else None
    whose = "as the user nobody" if user else "as the grader's own user"
    says = f"NOT CONFINED by bubblewrap, {why}: {whose}, {limits}; it can read whatever this user can"
    return Confinement((), says, user, False)


def _ways():
    """Yield ways to call bubblewrap, the best first: a phrase, bubblewrap's options, the command inside."""
    if os.geteuid() == 0:  # root mounts the paths, which others may not reach, then gives up its privileges
        capabilities = [word for name in ("SETUID", "SETGID", "SETPCAP") for word in ("--cap-add", f"CAP_{name}")]
        options = (*SPACES, "--cap-drop", "ALL", *capabilities)
        yield "as the user nobody", options, (*TO_NOBODY, *OWN_USERS)
        yield "as the user nobody, without a user namespace", options, TO_NOBODY
    options = (*SPACES, "--unshare-user", "--uid", str(NOBODY), "--gid", str(NOBODY), "--cap-drop", "ALL")
    yield "as the grader's own user without its rights", (*options, "--disable-userns"), ()
    yield "as the grader's own user without its rights", options, ()  # before bubblewrap 0.8


def _paths(secrets):
    """Return bubblewrap's arguments for what is visible in the jail."""
    python = [path for prefix in (sys.prefix, sys.base_prefix) for path in (prefix, os.path.realpath(prefix))]
    shown = sorted({path for path in (*SYSTEM, *python) if os.path.exists(path)}, key=len)
    package = ROOT / "eecs598"
    public = [str(path) for path in sorted(package.iterdir()) if path.name.split(".")[0] not in SECRET]
    public += [str(package / "grading" / name) for name in PUBLIC]
    arguments = ["--die-with-parent", "--new-session", "--clearenv", "--hostname", "jail", "--proc", "/proc"]
    arguments += ["--perms", "1777", "--size", str(DISK), "--tmpfs", "/tmp"]
    parents = {str(parent) for path in (*shown, *public, *DEVICES) for parent in Path(path).parents} - {"/", "/tmp"}
    for folder in sorted(parents, key=len):  # if root runs it, bubblewrap makes them readable for root only
        if not any(Path(folder).is_relative_to(path) for path in shown):
            arguments += ["--perms", "0755", "--dir", folder]
    for path in shown:
        linked = os.path.islink(path) and path in SYSTEM and not path.startswith("/etc")
        arguments += ["--symlink", os.readlink(path), path] if linked else ["--ro-bind", path, path]
    for path in _hidden(secrets):
        if any(path.is_relative_to(os.path.realpath(folder)) for folder in shown):
            hide = ["--size", "4096", "--perms", "0755", "--tmpfs"] if path.is_dir() else ["--ro-bind", "/dev/null"]
            arguments += [*hide, str(path)]
    for path in public:
        arguments += ["--ro-bind", path, path]
    for path in DEVICES:
        arguments += ["--dev-bind", path, path]
    arguments += ["--remount-ro", "/", "--chdir", "/tmp"]
    for name, value in (_environment() | {"HOME": "/tmp"}).items():
        arguments += ["--setenv", name, value]
    return arguments


def _hidden(secrets):
    """Return what to hide if it lies in a visible folder, as it does if pip has installed the project."""
    paths = list(map(Path, secrets))
    for folder in {ROOT, *map(Path, sys.path)}:
        paths += [folder / f"{NAME}.py", *folder.glob(f"__pycache__/{NAME}.*")]
        paths += [folder / "eecs598" / room for room in SECRET]
    return sorted({path.resolve() for path in paths if path.exists()})


def _environment():
    threads = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS")}
    kept = ("LANG", "LD_LIBRARY_PATH", "SYSTEMROOT", "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
    return {name: os.environ[name] for name in kept if name in os.environ} | threads | {
        "PATH": os.defpath + ":/usr/sbin:/sbin", "HOME": tempfile.gettempdir(), "USER": "student",
        "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1",
        "CUDA_VISIBLE_DEVICES": "",  # the same on every machine: submissions always run on the CPU
        "OBJC_DISABLE_INITIALIZE_FORK_SAFETY": "YES",  # macOS: a fork of a process with frameworks loaded
    }  # fmt: skip


@functools.cache
def _try(command, user=None):
    """Start Python with a command, as a user. Returns an empty string, or why that fails."""
    missing = "torch cannot be imported there: install it in a virtual environment, not for one user"
    find = f"sys.exit(importlib.util.find_spec('torch') is None and {missing!r})"
    python = [*command, sys.executable, "-c", f"import eecs598.grading, importlib.util, sys; {find}"]
    try:
        done = subprocess.run(python, user=user, **_starting(user), capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)[:200]
    return (done.stderr.strip().splitlines() or ["it fails"])[-1][:200] if done.returncode else ""


def _starting(user, jailed=True):
    groups = {"group": user, "extra_groups": []} if user else {}
    bus = {name: os.environ[name] for name in BUS if jailed and name in os.environ}  # cleared inside the jail
    return {"env": _environment() | bus, "cwd": tempfile.gettempdir(), "stdin": subprocess.DEVNULL, **groups}


@functools.cache
def _memory_limit(memory):
    """Return the command that puts a jail into a cgroup of its own; empty if systemd does not provide one."""
    size = f"MemoryMax={memory + 1024}M"  # Python, torch and /tmp come on top
    whose = ("--user",) if hasattr(os, "getuid") and os.getuid() else ()
    limits = ("--scope", "--quiet", "-p", size, "-p", "MemorySwapMax=0", "-p", "TasksMax=64")
    if tool := shutil.which("systemd-run"):
        command = (tool, *whose, *limits)
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            if not subprocess.run([*command, "true"], **_starting(None), capture_output=True, timeout=10).returncode:
                return command
    return ()


def _filter():
    from eecs598.grading import sandbox

    return "an allow-list" if sandbox.pyseccomp and sys.platform == "linux" else "no list, as pyseccomp is missing"


# ---------------------------------------------------------------------------------------------------------
# Starting and stopping
# ---------------------------------------------------------------------------------------------------------


class Jail:
    """The jail of one submission, which starts a process for each part. A context manager.

    memory: limit in MB for each process, beyond what it has when it starts.
    """

    def __init__(self, confinement, memory=2048):
        self.confinement, self.memory, self.process, self.folder = confinement, memory, None, None

    def __enter__(self):
        self.open()
        return self

    def __exit__(self, *error):
        self.kill()

    def open(self):
        """Start the fork server, without waiting until it is ready."""
        if not hasattr(os, "fork"):
            return
        self.control, theirs = socket.socketpair()
        jailed, user = self.confinement.jailed, self.confinement.user
        starting, self.stderr, self.ready = _starting(user, jailed), tempfile.TemporaryFile(), False  # noqa: SIM115
        if not jailed:
            self.folder = starting["cwd"] = tempfile.mkdtemp(prefix="grading-")
            if user:
                os.chown(self.folder, user, user)
        command = _command("fork-server", str(theirs.fileno()), "jailed" if jailed else "loose")
        self.process = subprocess.Popen(
            [*self.confinement.command, *command], user=user, pass_fds=[theirs.fileno()], stdout=subprocess.DEVNULL,
            stderr=self.stderr, start_new_session=not jailed, **starting)  # fmt: skip
        theirs.close()

    def start(self):
        """Start a process for a part. Returns the channel to it. Raises RuntimeError."""
        if not hasattr(os, "fork"):
            self.folder = tempfile.mkdtemp(prefix="grading-")
            self.process = subprocess.Popen(
                _command("once", str(self.memory)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,
                stderr=subprocess.DEVNULL, cwd=self.folder, env=os.environ | _environment())  # fmt: skip
            channel = Whole(self.process.stdout, self.process.stdin)
            if channel.read(len(READY)) != READY:  # the time to load torch does not count
                channel.close()
                raise RuntimeError(f"the submission's process does not start: exit status {self.end()}")
            return channel
        for _ in range(2):  # the previous part may have killed the server
            if self.process is None:
                self.open()
            with contextlib.suppress(OSError):
                if not self.ready:
                    self.control.settimeout(OPENING)
                    self.ready = self.control.recv(64) == READY
                self.control.settimeout(ANSWERING)
                ours, theirs = socket.socketpair()
                with ours:  # but what is detached stays open
                    with theirs:
                        socket.send_fds(self.control, [str(self.memory).encode()], [theirs.fileno()])
                    if self.control.recv(64) == b"forked":
                        return Whole(os.fdopen(ours.detach(), "r+b", buffering=0))
            said = self._last_words()
            self.kill()
        raise RuntimeError(f"the submission's process does not start: {said}")

    def _last_words(self):
        self.stderr.seek(0)
        return (self.stderr.read().decode(errors="replace").strip().splitlines() or ["no message"])[-1][:300]

    def end(self):
        """End the part's process. Returns its exit status, negative for a signal, None if the server does not answer.

        It may be called twice and from several threads, but not concurrently.
        """
        if not hasattr(os, "fork"):
            self.process.kill()
            status = self.process.wait()
            _remove(self.folder)
            return status
        with contextlib.suppress(OSError, ValueError, AttributeError):
            self.control.sendall(b"end")
            return int(self.control.recv(64))
        self.kill()
        return None

    def kill(self):
        """Kill everything in the jail. The next `start` opens a new one."""
        process, self.process = self.process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if self.confinement.jailed or not hasattr(os, "killpg"):
                process.kill()
            else:
                os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if hasattr(os, "fork"):
            self.control.close()
            self.stderr.close()
        if self.folder:
            _remove(self.folder)


def _command(*arguments):
    return [sys.executable, "-m", "eecs598.grading.sandbox", *arguments]


def _remove(folder):
    """Remove a folder that a submission wrote to. It may be nested too deeply for `shutil.rmtree`, which recurses."""
    with contextlib.suppress(OSError):
        if shutil.which("rm"):
            subprocess.run(["rm", "-rf", "--", folder], capture_output=True, timeout=60)
        else:
            shutil.rmtree(folder, ignore_errors=True)
