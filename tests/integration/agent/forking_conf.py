"""gunicorn's configuration: each worker that ends in order writes down what CPU it used."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

_workers: list[int] = []


def post_fork(_: Any, __: Any) -> None:
    """Note who the worker is."""
    _workers[:] = [os.getpid()]


def worker_exit(_: Any, __: Any) -> None:
    """Write this worker's nanoseconds to a file named by its pid."""
    # A child that is forked under gevent runs copies of the worker's greenlets, whose loop then ends too.
    if os.getpid() in _workers:
        Path(os.environ["AGENT_TEST_EXITS"], str(os.getpid())).write_text(str(time.process_time_ns()))
