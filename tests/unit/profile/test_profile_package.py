"""What importing the package may bring in, and where it runs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def _installed() -> list[str]:
    """This interpreter, and those of the supported versions on PATH that start (a version manager's
    stand-in for one that is switched off does not).
    """
    found = [sys.executable]
    for minor in range(9, 14):
        path = shutil.which(f"python3.{minor}")
        if path and subprocess.run([path, "-c", ""], capture_output=True, check=False).returncode == 0:
            found.append(path)
    return sorted(set(found))


INTERPRETERS = _installed()
# `push` last: what it brings in stays.
MODULES = (
    "model",
    "types",
    "errors",
    "protowire",
    "pprof",
    "folded",
    "statement",
    "sqltext",
    "control",
    "push",
)
PROGRAM = """
import importlib, json, sys
sys.path.insert(0, sys.argv[1])
found = {}
for name in sys.argv[2:]:
    importlib.import_module("quayscope.profile." + name)
    found[name] = sorted({"threading", "socket", "ssl", "selectors", "http.client"} & set(sys.modules))
from quayscope.profile import PROCESS_CPU, Attributes, Frame, Profile, pprof, statement
profile = Profile(PROCESS_CPU, {}, 1, 1)
profile.add((Frame("f"),), Attributes(pid=1), (1, 2))
assert pprof.decode(pprof.encode(profile)) == profile
found["text"] = statement.normalize("SELECT 1").text
foreign = [
    name for name, module in sys.modules.items()
    if "site-packages" in (getattr(module, "__file__", None) or "")
]
print(json.dumps([found, foreign]))
"""


@pytest.mark.parametrize("interpreter", INTERPRETERS)
def test_it_runs_on_the_standard_library_alone(interpreter: str, checkout: Path) -> None:
    """Without site-packages every module imports and works, on each interpreter that is installed."""
    command = [interpreter, "-S", "-E", "-c", PROGRAM, str(checkout / "agent"), *MODULES]
    ran = subprocess.run(command, capture_output=True, timeout=60, check=False, text=True)
    assert ran.returncode == 0, ran.stderr
    found, foreign = json.loads(ran.stdout)
    assert foreign == []
    assert found["text"] == "select ?"


def test_only_push_brings_in_threads_and_sockets(checkout: Path) -> None:
    """A worker imports the rest before gevent patches `threading`, `socket` and `ssl`."""
    command = [sys.executable, "-S", "-E", "-c", PROGRAM, str(checkout / "agent"), *MODULES]
    ran = subprocess.run(command, capture_output=True, timeout=60, check=True, text=True)
    found, _ = json.loads(ran.stdout)
    assert {name: found[name] for name in MODULES if name != "push"} == {
        name: [] for name in MODULES if name != "push"
    }
