"""A gunicorn whose workers write down what is imported on any thread but the main one."""

from __future__ import annotations

import os
import sys
import threading
from typing import Any


def post_fork(_server: Any, _worker: Any) -> None:
    main, path = threading.get_native_id(), os.environ["AGENT_TEST_IMPORTS"]

    def audit(event: str, arguments: Any) -> None:
        if event == "import" and threading.get_native_id() != main:
            with open(path, "a") as file:
                file.write(f"{arguments[0]}\n")

    sys.addaudithook(audit)
