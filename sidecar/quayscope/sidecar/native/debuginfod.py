"""Debug files from a debuginfod server, fetched beside the work and never waited for.

Protocol: debuginfod(8), "GET /buildid/BUILDID/debuginfo". The server learns the build-ids of what runs here;
so nothing is asked unless a URL is given.
"""

from __future__ import annotations

import contextlib
import http.client
import logging
import os
import queue
import re
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from quayscope.sidecar.errors import BadOption, MalformedElf
from quayscope.sidecar.native.elf import Elf

__all__ = ["Debuginfod"]

log = logging.getLogger(__name__)

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_BUILD_ID = re.compile(r"[0-9a-f]{8,128}")
_TIMEOUT_S = 10.0
_MAX_FETCH_S = 300.0
_MAX_FILE = 512 << 20
_MAX_CACHE = 1 << 30
_MAX_WAITING = 64
_MAX_MISSING = 1024
_RETRY_S = 3600.0
_CHUNK = 256 << 10


class Debuginfod:
    """A folder of debug files, filled from `url` by a thread of its own.

    Files of more than 512 MB are not taken, the folder is kept within `max_bytes` (1 GB) by removing what was
    fetched first, 64 requests wait at most. What a server does not have is asked for again after an hour.
    Raises `BadOption` for a URL that is neither https nor plain http to loopback, OSError when the folder
    cannot be made. `fetched`, `missing`, `failed` (refused, broken, too long, of another build) and `dropped`
    (no room to wait) count requests.
    """

    def __init__(
        self,
        url: str,
        folder: Path,
        *,
        max_bytes: int = _MAX_CACHE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not _permitted(url):
            raise BadOption(
                f"debuginfod at {url!r} is neither https nor on loopback", next_step="use an https address"
            )
        self._url = url.rstrip("/")
        self._folder = folder
        self._max_bytes = max_bytes
        self._clock = clock
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._opener = urllib.request.build_opener(_Redirects())
        self._waiting: queue.Queue[str | None] = queue.Queue(_MAX_WAITING)
        self._asked: OrderedDict[str, float] = OrderedDict()
        self._lock = threading.Lock()
        self._arrived: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="debuginfod", daemon=True)
        self.generation = 0
        self.fetched = self.missing = self.failed = self.dropped = 0

    def start(self) -> None:
        """Begin to fetch."""
        self._thread.start()

    def close(self, timeout_s: float = 1.0) -> None:
        """Stop; a request that is under way is given up."""
        self._stop.set()
        with contextlib.suppress(queue.Full):
            self._waiting.put_nowait(None)
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def find(self, build_id: str) -> Elf | None:
        """Return the debug file of a build if it is here, else None, and have it fetched."""
        if not _BUILD_ID.fullmatch(build_id):
            return None
        with contextlib.suppress(OSError, MalformedElf):
            return self._open(build_id)
        with self._lock:
            asked = self._asked.get(build_id)
            if asked is not None and self._clock() < asked + _RETRY_S:
                return None
            self._asked[build_id] = self._clock()
            if len(self._asked) > _MAX_MISSING:
                self._asked.popitem(last=False)
        try:
            self._waiting.put_nowait(build_id)
        except queue.Full:
            self.dropped += 1
            with self._lock:
                self._asked.pop(build_id, None)
        return None

    def arrived(self) -> list[str]:
        """Return the builds whose files have come since the last call; `generation` grows with each."""
        with self._lock:
            found, self._arrived = self._arrived, []
        return found

    def _open(self, build_id: str) -> Elf:
        descriptor = os.open(self._folder / f"{build_id}.debug", os.O_RDONLY | os.O_CLOEXEC)
        try:
            elf = Elf(descriptor)
        finally:
            os.close(descriptor)
        if elf.build_id != build_id:
            raise MalformedElf("a debug file of another build")
        return elf

    def _run(self) -> None:
        while not self._stop.is_set():
            build_id = self._waiting.get()
            if build_id is None:
                return
            try:
                self._fetch(build_id)
            except urllib.error.HTTPError as error:
                error.close()
                if error.code == 404:
                    self.missing += 1
                else:
                    self._note_failed(build_id, f"status {error.code}")
            except (OSError, http.client.HTTPException, MalformedElf, ValueError) as error:
                self._note_failed(build_id, str(error))

    def _note_failed(self, build_id: str, why: str) -> None:
        self.failed += 1
        log.warning("debug file not fetched", extra={"build_id": build_id, "error": why})

    def _fetch(self, build_id: str) -> None:
        request = urllib.request.Request(  # noqa: S310 - the scheme is checked above, and at each redirect
            f"{self._url}/buildid/{build_id}/debuginfo", headers={"User-Agent": "quayscope"}
        )
        deadline = time.monotonic() + _MAX_FETCH_S
        with tempfile.NamedTemporaryFile(dir=self._folder, prefix=".part-") as part:
            with self._opener.open(request, timeout=_TIMEOUT_S) as answer:
                size = 0
                while data := answer.read(_CHUNK):
                    size += len(data)
                    if size > min(_MAX_FILE, self._max_bytes):
                        raise ValueError("the file is too long")
                    if self._stop.is_set() or time.monotonic() > deadline:
                        raise TimeoutError("given up")
                    part.write(data)
            part.flush()
            if Elf(part.fileno()).build_id != build_id:
                raise MalformedElf("a debug file of another build")
            self._make_room(size)
            os.link(part.name, self._folder / f"{build_id}.debug")
        self.fetched += 1
        with self._lock:
            self._arrived.append(build_id)
            self._asked.pop(build_id, None)
            self.generation += 1

    def _make_room(self, size: int) -> None:
        held = []
        for path in self._folder.glob("*.debug"):
            with contextlib.suppress(OSError):
                facts = path.stat()
                held.append((facts.st_mtime_ns, facts.st_size, path))
        total = size + sum(length for _, length, _ in held)
        for _, length, path in sorted(held):
            if total <= self._max_bytes:
                break
            path.unlink(missing_ok=True)
            total -= length


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects only to where we might have been sent by the URL itself."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        if not _permitted(newurl):
            raise urllib.error.HTTPError(newurl, code, "redirected to plain http", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _permitted(url: str) -> bool:
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return False
    return bool(host) and (parts.scheme == "https" or (parts.scheme == "http" and host in _LOOPBACK))
