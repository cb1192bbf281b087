"""METEOR: words matched exactly, by stem, synonym and paraphrase, with a penalty for changes in word order.

Denkowski and Lavie, "Meteor universal: language specific translation evaluation for any target language", 2014. The
scores come from the field's own program, meteor-1.5.jar, which is part of pycocoevalcap and runs where there is Java.
It is called as COCO's evaluation code calls it (`-stdio -l en -norm`), but a program that fails, hangs or answers
nonsense ends in a MeteorError and never stops the evaluation.
"""

import contextlib
import importlib.util
import math
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from pathlib import Path

STARTUP, PER_PICTURE = 120.0, 0.2  # seconds; on two busy cores: 39 to start, 0.03 per picture with 4 references
STATISTICS = 23  # how many numbers the jar answers for a picture
LONGEST_ANSWER = 10_000  # bytes of a line


class MeteorError(Exception):
    """Why there is no METEOR, in one line."""


def score_meteor(captions, references, limit=None):
    """METEOR over all pictures, and of each picture: (a float, a list of floats), 1 at best.

    captions: a list of words for each picture. references: for each picture, lists of words. limit: seconds that the
    program may take. Raises MeteorError.
    """
    java, jar = find_java(), find_jar()
    # English, because elsewhere the jar wants "0,5" for a half; memory as in COCO's evaluation code.
    command = [java, "-Duser.language=en", "-Duser.country=US", "-Dfile.encoding=UTF-8", "-Xmx2G", "-jar", jar]
    command += ["-", "-", "-stdio", "-l", "en", "-norm"]
    with _running(command, limit or STARTUP + PER_PICTURE * len(captions)) as ask:
        statistics = [ask(_question(words, texts), STATISTICS) for words, texts in zip(captions, references)]
        ask.send(" ||| ".join(["EVAL", *statistics]))
        *scores, total = [float(ask.answer(1)) for _ in range(len(statistics) + 1)]
    if not all(0 <= score <= 1 for score in (total, *scores)):
        raise MeteorError("the METEOR program answered a score outside [0, 1]")
    return total, scores


def find_java():
    """The path of `java`. Raises MeteorError."""
    if java := shutil.which("java"):
        return java
    raise MeteorError("java was not found; install a Java runtime (on Debian: apt-get install default-jre-headless)")


def find_jar():
    """The path of pycocoevalcap's meteor-1.5.jar. Raises MeteorError."""
    spec = importlib.util.find_spec("pycocoevalcap")
    for folder in spec.submodule_search_locations or () if spec else ():
        if (jar := Path(folder) / "meteor" / "meteor-1.5.jar").is_file():
            return str(jar)
    raise MeteorError("meteor-1.5.jar was not found; `pip install pycocoevalcap` installs it")


def _question(words, texts):
    """A SCORE line: references, then the caption. No caption can contain the separator "|||" or start a new line."""
    fields = [" ".join(" ".join(field).replace("|", " ").split()) for field in (*texts, words)]
    return " ||| ".join(["SCORE", *fields])


class _Conversation:
    """Questions to a running program and its answers, a line each."""

    def __init__(self, process):
        self.process = process

    def __call__(self, question, count):
        self.send(question)
        return self.answer(count)

    def send(self, question):
        self.process.stdin.write(question.encode(errors="replace") + b"\n")
        self.process.stdin.flush()

    def answer(self, count):
        """The next line, which must consist of `count` finite numbers. Raises MeteorError."""
        line = self.process.stdout.readline(LONGEST_ANSWER)
        if not line:
            raise EOFError
        text = line.decode(errors="replace").strip()
        try:
            fits = [math.isfinite(float(field)) for field in text.split()] == [True] * count
        except ValueError:
            fits = False
        if not fits:
            raise MeteorError(f"the METEOR program answered {text!r:.60} instead of {count} numbers")
        return text


@contextlib.contextmanager
def _running(command, limit):
    """Start a program; inside, a _Conversation with it. It is killed at the end, and after `limit` seconds."""
    late = threading.Event()
    with tempfile.TemporaryFile() as errors:
        try:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
                                       start_new_session=True)  # fmt: skip
        except OSError as error:
            raise MeteorError(f"{command[0]} could not be started ({error.strerror})") from None

        def stop():
            late.set()
            _kill(process)

        timer = threading.Timer(limit, stop)
        timer.start()
        try:
            yield _Conversation(process)
        except (EOFError, OSError):
            if late.is_set():
                raise MeteorError(f"the METEOR program did not finish within {limit:g} s") from None
            raise MeteorError(f"the METEOR program stopped ({_first_line(errors)})") from None
        finally:
            timer.cancel()
            timer.join()
            _kill(process)
            with contextlib.suppress(OSError):
                process.stdin.close()
            process.stdout.close()
            process.wait()


def _kill(process):
    """Kill a program, on Linux and macOS with all that it started."""
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL) if hasattr(os, "killpg") else process.kill()


def _first_line(errors):
    """What the program wrote to standard error, cut to one line."""
    errors.seek(0)
    lines = errors.read(LONGEST_ANSWER).decode(errors="replace").splitlines()
    return next((line.strip()[:150] for line in lines if line.strip() and "Picked up" not in line), "without a message")
