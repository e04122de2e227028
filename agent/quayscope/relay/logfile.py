"""A log for a process that nobody watches: one small file, started anew each time."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from pathlib import Path

__all__ = ["LogFile"]

MAX_BYTES = 64_000
_MAX_LINE = 4_000
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class LogFile(logging.Handler):
    """Writes lines `time level message key=value ...` to `path`, mode 0600, at most `MAX_BYTES`.

    What lay there is removed, a symbolic link itself and not what it points to. A file that is full begins
    anew. Where none can be made, nothing is written and nothing raised.
    """

    def __init__(self, path: str) -> None:
        super().__init__(logging.INFO)
        self._written = 0
        self._file = -1
        with contextlib.suppress(OSError):
            with contextlib.suppress(FileNotFoundError):
                Path(path).unlink()
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self._file = os.open(path, flags, 0o600)

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        if self._file < 0:
            return
        with contextlib.suppress(Exception):  # logging's border: a line must not cost more than itself
            self._write(_line(record))

    def _write(self, line: bytes) -> None:
        if self._written + len(line) > MAX_BYTES:
            os.ftruncate(self._file, 0)
            os.lseek(self._file, 0, os.SEEK_SET)
            begin = b"earlier lines are gone: the file was full\n"
            self._written = os.write(self._file, begin)
        self._written += os.write(self._file, line)


def _line(record: logging.LogRecord) -> bytes:
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
    parts = [stamp, record.levelname.lower(), _value(record.getMessage())]
    parts += [f"{key}={_value(value)}" for key, value in vars(record).items() if key not in _STANDARD]
    if record.exc_info and record.exc_info[1] is not None:
        parts.append(f"error={_value(_where(record.exc_info[1]))}")
    return " ".join(parts).encode("utf-8", "replace")[: _MAX_LINE - 1] + b"\n"


def _where(error: BaseException) -> str:
    """Return an exception and the innermost line it came from."""
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    place = f" in {at.tb_frame.f_code.co_name}:{at.tb_lineno}" if at is not None else ""
    return f"{type(error).__name__}: {error}{place}"


def _value(value: object) -> str:
    text = str(value)
    # One line a record, whatever a peer sent.
    return text if text.isprintable() else json.dumps(text)
