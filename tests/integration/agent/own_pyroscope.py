"""The same application with a pyroscope session of its own, in gunicorn's master or in each worker."""

from __future__ import annotations

import os
from typing import Any

import pyroscope

bind = "127.0.0.1:0"


def _start(where: str) -> None:
    if os.environ["AGENT_TEST_SESSION"] == where:
        pyroscope.configure(application_name="its-own", server_address=os.environ["QUAYSCOPE_MEMORY"])


def on_starting(_: Any) -> None:
    _start("master")


def post_fork(_: Any, __: Any) -> None:
    _start("worker")
