"""Interpreters beside the one that runs the tests: a worker's may be older or newer."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["find_python"]


def find_python(version: str) -> Path:
    """Return an interpreter of CPython `version` (such as 3.9) that pyenv keeps; fails without one."""
    root = Path(os.environ.get("PYENV_ROOT") or "~/.pyenv").expanduser() / "versions"
    found = sorted(root.glob(f"{version}.*/bin/python{version}"))
    if not found:
        raise AssertionError(
            f"no CPython {version} under {root}; next: pyenv install {version}, or set PYENV_ROOT"
        )
    return found[-1]
