"""What pyproject.toml promises of versions and warnings."""

import os
import pkgutil
import re
import subprocess
import sys
import warnings
from importlib import metadata

import pytest
from support import ROOT

import eecs598

OURS = pkgutil.iter_modules(eecs598.__path__)
MODULES = ["rnn_lstm_captioning", "helpers", *(f"eecs598.{each.name}" for each in OURS)]


def test_each_package_has_one_lower_bound():
    """`make oldest` installs them all at once."""
    bounds = set(re.findall(r'"([a-z0-9-]+)>=([0-9.]+)"', (ROOT / "pyproject.toml").read_text()))
    assert len(bounds) > 10 and len({name for name, _ in bounds}) == len(bounds)


@pytest.mark.parametrize("module", MODULES)
def test_a_warning_from_our_own_code_is_an_error(module):
    for category in (DeprecationWarning, FutureWarning, UserWarning, RuntimeWarning):
        with pytest.raises(category, match="old"):
            warnings.warn_explicit("old", category, f"{module}.py", 1, module=module)


def test_a_warning_from_another_package_is_none():
    with warnings.catch_warnings(record=True) as seen:  # unlike pytest.warns, it keeps the filters
        warnings.warn_explicit("old", DeprecationWarning, "array.py", 1, module="numpy.array")
    assert len(seen) == 1


def test_a_command_begins_without_torchvision():
    """Whose import takes as long as all the others together."""
    program = "import runpy, sys; runpy.run_path('helpers.py'); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert "torch" in done.stdout.split() and "torchvision" not in done.stdout.split()


@pytest.mark.parametrize("command", [
    ["helpers.py", "--help"], ["-m", "eecs598.coco", "--help"],
    ["-c", "import helpers, eecs598.bench, eecs598.vis.viewer"],
])  # fmt: skip
def test_commands_begin_without_a_warning_of_ours(command):
    """In a process of its own pytest's filters do not hold; there every warning is shown, with the file it is from."""
    environment = {**os.environ, "PYTHONWARNINGS": "always"}
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0
    ours = [line for line in done.stderr.splitlines() if re.match(rf"{re.escape(str(ROOT))}/(?!\.venv)", line)]
    assert ours == []


def test_what_is_installed_is_what_pyproject_asks_for():
    """So that these tests say something about the releases that pyproject.toml admits."""
    bounds = dict(re.findall(r'"([a-z0-9-]+)>=([0-9.]+)"', (ROOT / "pyproject.toml").read_text()))
    assert {"torch", "torchvision", "numpy", "pillow", "filelock", "pytest"} <= bounds.keys()
    for name in ("torch", "torchvision", "numpy", "matplotlib", "pillow", "tqdm", "requests", "filelock", "pytest"):
        installed, bound = (tuple(map(int, re.findall(r"\d+", version)[:2]))
                            for version in (metadata.version(name), bounds[name]))  # fmt: skip
        assert installed >= bound[:2], name
