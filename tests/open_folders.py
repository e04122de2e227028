"""Folders that every user may pass through, which pytest's own are not."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

__all__ = ["made_open"]


@contextlib.contextmanager
def made_open(name: str) -> Iterator[Path]:
    """Make such a folder, removed at the end with all that is in it."""
    folder = Path(tempfile.mkdtemp(prefix=f"quayscope-{name}-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
