"""Structured logging to stderr: one line a record, `time level logger message key=value ...`."""

from __future__ import annotations

import json
import logging
import sys
import time

__all__ = ["KeyValueFormatter", "configure"]

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class KeyValueFormatter(logging.Formatter):
    """Renders a record and whatever its call passed as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line; values with spaces or quotes are JSON strings."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        fields = [
            f"{stamp}.{int(record.msecs):03d}Z",
            record.levelname.lower(),
            record.name,
            _value(record.getMessage()),
        ]
        fields += [f"{key}={_value(value)}" for key, value in vars(record).items() if key not in _STANDARD]
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            fields.append(f"error={_value(f'{type(error).__name__}: {error}')}")
            if record.levelno >= logging.ERROR:
                return " ".join(fields) + "\n" + self.formatException(record.exc_info)
        return " ".join(fields)


def _value(value: object) -> str:
    text = str(value)
    if text and all(character.isprintable() and character not in ' "=' for character in text):
        return text
    return json.dumps(text, ensure_ascii=False)


def configure(level: str) -> None:
    """Send records of `level` (debug, info, warning, error) and above to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(KeyValueFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
