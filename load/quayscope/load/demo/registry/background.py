"""A housekeeping program beside the registry, like Quay's workers.

`python -m quayscope.load.demo.registry.background`: every two seconds it removes expired tags and sums up
the newest log entries in Python. A Python process without an agent in it, ended by SIGTERM.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING

import psycopg2
import psycopg2.extras

from quayscope.load.demo.registry.database import Database
from quayscope.load.demo.registry.settings import Settings
from quayscope.profile import Failure

if TYPE_CHECKING:
    from psycopg2 import extensions

__all__ = ["expire_tags", "main", "summarize_logs"]

log = logging.getLogger(__name__)

EVERY_SECONDS = 2.0
TAGS_AT_ONCE = 50
ENTRIES_AT_ONCE = 50_000


def expire_tags(cursor: extensions.cursor, now_ms: int) -> int:
    """Remove at most `TAGS_AT_ONCE` ended tags; returns how many. Locked ones wait for the next round."""
    cursor.execute(
        "DELETE FROM tag WHERE id IN (SELECT id FROM tag WHERE lifetime_end_ms < %s"
        " ORDER BY lifetime_end_ms LIMIT %s FOR UPDATE SKIP LOCKED)",
        (now_ms, TAGS_AT_ONCE),
    )
    return cursor.rowcount


def summarize_logs(cursor: extensions.cursor) -> int:
    """Count the newest log entries by kind and tag; returns how many were read."""
    cursor.execute("SELECT kind, metadata_json FROM logentry ORDER BY id DESC LIMIT %s", (ENTRIES_AT_ONCE,))
    rows = cursor.fetchall()
    counts: Counter[tuple[str, str]] = Counter()
    for kind, metadata in rows:
        counts[kind, _tag(metadata)] += 1
    psycopg2.extras.execute_values(
        cursor,
        "INSERT INTO logsummary (kind, tag, entries) VALUES %s"
        " ON CONFLICT (kind, tag) DO UPDATE SET entries = excluded.entries",
        [(kind, tag, entries) for (kind, tag), entries in sorted(counts.items())],
        page_size=1000,
    )
    return len(rows)


def _tag(metadata: str) -> str:
    try:
        tag = json.loads(metadata)["tag"]
    except (ValueError, KeyError, TypeError):
        return ""
    return tag[:64] if isinstance(tag, str) else ""


def main() -> int:
    """Run until SIGTERM or SIGINT; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s")
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    try:
        settings = Settings.from_environment(os.environ)
    except Failure as failure:
        print(f"error: {failure}\n next: {failure.next_step}", file=sys.stderr)
        return failure.exit_code
    database = Database(settings.dsn, "housekeeping")
    while not ended.wait(EVERY_SECONDS):
        try:
            with database.transaction() as cursor:
                expire_tags(cursor, time.time_ns() // 1_000_000)
            with database.transaction() as cursor:
                summarize_logs(cursor)
        except psycopg2.Error as error:
            log.warning("database trouble: %s", (str(error).strip().splitlines() or ["closed"])[0])
    database.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
