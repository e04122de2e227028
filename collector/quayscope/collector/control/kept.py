"""Results of captures on disk: a folder each, whole or not there at all, the oldest removed first."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["KeptCaptures"]

log = logging.getLogger(__name__)

MOST_CAPTURES = 200
MOST_BYTES = 512 << 20
"""What all results may take on disk; the newest one is kept whatever its size."""
_ID = re.compile(r"[0-9]{8}T[0-9]{6}-[0-9a-f]{8}")
_ABOUT = "capture.json"


class KeptCaptures:
    """The folder `directory`, made where it is missing. One thread writes, others read."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        for left in directory.glob(".*"):
            shutil.rmtree(left, ignore_errors=True)

    def ids(self) -> list[str]:
        """Return the ids there are, the newest first."""
        return sorted(
            (path.name for path in self._directory.iterdir() if _ID.fullmatch(path.name)), reverse=True
        )

    def write(self, name: str, about: Mapping[str, Any], profiles: Mapping[str, bytes]) -> None:
        """Keep a result: what it is about, and pprof messages by file name. Raises OSError."""
        temporary = self._directory / f".{name}"
        temporary.mkdir()
        try:
            for file, data in profiles.items():
                (temporary / file).write_bytes(data)
            (temporary / _ABOUT).write_text(json.dumps(about), encoding="utf-8")
            temporary.rename(self._directory / name)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        self._make_room()

    def about(self, name: str) -> dict[str, Any] | None:
        """Return what a result is about; None where there is none."""
        if not _ID.fullmatch(name):
            return None
        try:
            document = json.loads((self._directory / name / _ABOUT).read_text("utf-8"))
        except (OSError, ValueError):
            return None
        return document if isinstance(document, dict) else None

    def profile(self, name: str, file: str) -> bytes | None:
        """Return one of its profiles, as it was written; None where there is none."""
        if not _ID.fullmatch(name) or "/" in file or file.startswith("."):
            return None
        try:
            return (self._directory / name / file).read_bytes()
        except OSError:
            return None

    def _make_room(self) -> None:
        kept = 0
        for number, name in enumerate(self.ids()):
            folder = self._directory / name
            kept += sum(path.stat().st_size for path in folder.iterdir())
            if number >= MOST_CAPTURES or (kept > MOST_BYTES and number):
                shutil.rmtree(folder, ignore_errors=True)
                log.info("old capture removed", extra={"capture": name})
