"""What the registry is told by its environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from quayscope.load.demo.errors import DemoError
from quayscope.load.demo.registry import weak

__all__ = ["DIRECTORY", "DSN", "WEAK", "Settings"]

DSN = "QUAYSCOPE_DEMO_DSN"
"""Connection string of the database. Required."""
DIRECTORY = "QUAYSCOPE_DEMO_DIR"
"""Directory for blobs, uploads and ledgers. Required; must exist."""
WEAK = "QUAYSCOPE_DEMO_WEAK"
"""Weak spots that are on; see `quayscope.load.demo.registry.weak`."""


@dataclass(frozen=True)
class Settings:
    """The registry's settings."""

    dsn: str
    directory: Path
    weak: frozenset[str]

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Settings:
        """Read the settings; raises `DemoError` naming the variable that is missing or wrong."""
        for name in (DSN, DIRECTORY):
            if not environment.get(name):
                raise DemoError(f"{name} is not set", next_step="start the registry through: quayscope demo")
        directory = Path(environment[DIRECTORY])
        if not directory.is_dir():
            raise DemoError(f"{DIRECTORY}: {directory} is not a directory", next_step="create it")
        return cls(environment[DSN], directory, weak.parse(environment.get(WEAK)))
