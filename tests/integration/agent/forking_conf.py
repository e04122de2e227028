"""gunicorn's configuration: each worker says when it is ready, and at its end what CPU it used."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

_workers: list[int] = []


def post_worker_init(_: Any) -> None:
    """Say that this worker is about to serve."""
    _workers[:] = [os.getpid()]
    _write("ready", "")


def worker_exit(_: Any, __: Any) -> None:
    """Write down this worker's nanoseconds of CPU."""
    # A child that is forked under gevent runs copies of the worker's greenlets, whose loop then ends too.
    if os.getpid() in _workers:
        _write("ended", str(time.process_time_ns()))


def _write(what: str, text: str) -> None:
    Path(os.environ["AGENT_TEST_NOTES"], f"{os.getpid()}.{what}").write_text(text)
