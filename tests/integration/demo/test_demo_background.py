"""The housekeeping program beside the registry."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import psycopg2

from integration.demo.registry_process import environment, wait_until
from quayscope.load.demo.postgres import DemoPostgres
from quayscope.load.demo.processes import cpu_seconds


def test_it_keeps_house_and_ends_on_sigterm(postgres: DemoPostgres, directory: Path) -> None:
    """It expires tags and sums up the log on its own connection, uses CPU, and ends with exit code 0."""
    connection = psycopg2.connect(postgres.dsn)
    connection.autocommit = True

    def count(statement: str) -> int:
        with connection.cursor() as cursor:
            cursor.execute(statement)
            row = cursor.fetchone()
        assert row is not None
        return int(row[0])

    ended = "SELECT count(*) FROM tag WHERE lifetime_end_ms IS NOT NULL"
    before = count(ended)
    process = subprocess.Popen(
        [sys.executable, "-m", "quayscope.load.demo.registry.background"],
        env=environment(postgres.dsn, directory, ""),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_until(lambda: count("SELECT coalesce(sum(entries), 0) FROM logsummary") >= 50_000, 15)
        wait_until(lambda: count(ended) <= before - 50)
        assert count("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'housekeeping'") == 1
        assert 0.05 < cpu_seconds(process.pid) < 5
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=5)
    finally:
        process.kill()
        process.wait()
        connection.close()
    assert process.returncode == 0
    assert errors == ""
