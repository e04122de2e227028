"""Directories for demos: a plain user and the demo's Postgres must be able to pass through them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def open_directory() -> Iterator[Callable[[], Path]]:
    """Makes directories that every user may enter; pytest's own are closed to others."""
    made: list[Path] = []

    def make() -> Path:
        directory = Path(tempfile.mkdtemp(prefix="quayscope-e2e-"))
        directory.chmod(0o755)
        made.append(directory)
        return directory

    yield make
    for directory in made:
        shutil.rmtree(directory, ignore_errors=True)
