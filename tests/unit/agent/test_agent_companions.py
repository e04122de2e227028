"""Packages that a bundle brings are found last, and only where the application has none of that name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from quayscope.agent.bundle import write
from quayscope.agent.companions import append_packages

VERSION = f"cp{sys.version_info[0]}{sys.version_info[1]}"


def module(folder: Path, name: str) -> Path:
    """A package of this name in a folder."""
    (folder / name).mkdir(parents=True)
    (folder / name / "here.py").write_text("")
    return folder


def test_appends_what_is_lacking(tmp_path: Path) -> None:
    """What the path has stays what it is, a namespace package too; the rest is appended, in order."""
    packages = tmp_path / "packages" / VERSION
    for name in ("opentelemetry", "pyroscope", "zoo"):
        module(packages / name, name)
    (packages / "not-a-module").mkdir()
    path = [str(module(tmp_path / "site", "opentelemetry"))]
    assert append_packages(str(tmp_path), path) == [str(packages / "pyroscope"), str(packages / "zoo")]
    assert path[0] == str(tmp_path / "site")
    assert append_packages(str(tmp_path), path) == []


def test_nothing_for_other_interpreters(tmp_path: Path) -> None:
    """Packages of another CPython, and a bundle without any, change nothing."""
    module(tmp_path / "packages" / "cp27" / "pyroscope", "pyroscope")
    path: list[str] = []
    assert append_packages(str(tmp_path), path) == append_packages(str(tmp_path / "none"), path) == path == []


def test_gunicorn_finds_them(tmp_path: Path) -> None:
    """A gunicorn started with the bundle on its path can import what it lacked; another program cannot."""
    write(tmp_path)
    module(tmp_path / "packages" / VERSION / "companion_of_a_test", "companion_of_a_test")
    code = "import companion_of_a_test.here"
    for name, code_expected in (("gunicorn", 0), ("other", 1)):
        script = tmp_path / name
        script.write_text(code)
        done = subprocess.run(
            [sys.executable, str(script)], env={"PYTHONPATH": str(tmp_path)}, capture_output=True
        )
        assert done.returncode == code_expected, done.stderr


def test_without_a_folder_nothing_is_appended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies where the application happens to run is never ours."""
    strange = tmp_path / "packages" / VERSION / "stranger"
    strange.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    path: list[str] = []
    assert append_packages("", path) == append_packages(".", path) == path == []
