"""A mixed load: connections of an application, each with a habit of its own."""

from __future__ import annotations

import threading
import time
from typing import Any

__all__ = ["Busy"]


class Busy:
    """Connections that each run a statement again and again, some short, some long, some in transactions."""

    _STATEMENTS = (
        ("SELECT pg_sleep(0.02), 'é' AS é", False),
        ("SELECT count(*) FROM generate_series(1, 20000) g", False),
        ("SELECT 1", False),
        ("SELECT pg_sleep(0.3)", True),
    )

    def __init__(self, server: Any, count: int) -> None:
        self._server = server
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(index,), daemon=True) for index in range(count)
        ]

    def _run(self, index: int) -> None:
        statement, in_transaction = self._STATEMENTS[index % len(self._STATEMENTS)]
        with self._server.connect(application_name=f"busy {index}") as connection:
            while not self._stop.is_set():
                if in_transaction:
                    connection.execute("BEGIN")
                connection.execute(f"{statement} -- {index}".encode())
                if in_transaction:
                    time.sleep(0.05)
                    connection.execute("COMMIT")

    def __enter__(self) -> Busy:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(10)
