"""Blobs and unfinished uploads as plain files, shared by all workers."""

from __future__ import annotations

import contextlib
import hashlib
import re
from pathlib import Path

__all__ = ["DIGEST", "Storage"]

DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_UPLOAD = re.compile(r"[0-9a-f]{32}")


class Storage:
    """Files below `directory`: `blobs/<2 digits>/<digest>` and `uploads/<identifier>`."""

    def __init__(self, directory: Path) -> None:
        self._blobs = directory / "blobs"
        self._uploads = directory / "uploads"
        for made in (self._blobs, self._uploads):
            made.mkdir(exist_ok=True)

    def put(self, content: bytes) -> str:
        """Store a blob; returns its digest."""
        digest = _digest(content)
        path = self._blob(digest)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        return digest

    def read(self, digest: str) -> bytes:
        """Return a blob; raises `FileNotFoundError`, also for what is not a digest."""
        return self._blob(digest).read_bytes()

    def append(self, upload: str, content: bytes) -> int:
        """Add to an upload, which begins with its first bytes; returns its size."""
        with self._upload(upload).open("ab") as file:
            file.write(content)
            return file.tell()

    def finish(self, upload: str, digest: str) -> int | None:
        """Make an upload the blob `digest`; returns its size, or None where its content is another."""
        path = self._upload(upload)
        content = path.read_bytes()
        if _digest(content) != digest:
            return None
        target = self._blob(digest)
        target.parent.mkdir(exist_ok=True)
        path.replace(target)
        return len(content)

    def abandon(self, upload: str) -> None:
        """Forget an upload."""
        with contextlib.suppress(FileNotFoundError):
            self._upload(upload).unlink()

    def _blob(self, digest: str) -> Path:
        # Digests come from requests: nothing else may become a path.
        if not DIGEST.fullmatch(digest):
            raise FileNotFoundError(digest)
        return self._blobs / digest[7:9] / digest[7:]

    def _upload(self, upload: str) -> Path:
        if not _UPLOAD.fullmatch(upload):
            raise FileNotFoundError(upload)
        return self._uploads / upload


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
