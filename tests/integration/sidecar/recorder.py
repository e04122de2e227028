"""Recordings by `perf record --call-graph dwarf` of a Postgres under a mixed load, and of programs."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from quayscope.sidecar.native.events import DUMP_BYTES

__all__ = ["MIXED", "SUMMED", "Database", "mixed_load", "prepare", "record", "recording"]

RATE = "499"

SUMMED = """
CREATE OR REPLACE FUNCTION summed(x int) RETURNS int LANGUAGE plpgsql AS
    $$ DECLARE s int := 0; BEGIN FOR k IN 1..50 LOOP s := s + k * x % 7; END LOOP; RETURN s; END $$;
"""
"""A procedural function: its language is a library that each backend loads."""
PREPARE = """
CREATE TABLE account AS SELECT i AS id, md5(i::text) AS name, i * 1.1 AS amount,
    jsonb_build_object('k', i % 50, 'v', md5(i::text)) AS facts FROM generate_series(1, 20000) i;
ALTER TABLE account ADD PRIMARY KEY (id);
ANALYZE account;
"""
MIXED = (
    "SELECT * FROM account WHERE id = (random() * 20000)::int",
    "SELECT sum(amount), count(DISTINCT name) FROM account WHERE id < 3000",
    "UPDATE account SET amount = amount + 1 WHERE id = 77",
    "SELECT summed(id) FROM account WHERE id < 50",
    "SELECT count(*) FROM account WHERE name LIKE '%abc%'",
    "SELECT facts ->> 'v', count(*) FROM account WHERE id < 500 GROUP BY 1 ORDER BY 2 LIMIT 5",
    "SELECT count(*) FROM account x JOIN account y USING (name)",
    "SELECT sha256(name::bytea) FROM account WHERE id < 300",
    "INSERT INTO account SELECT 100000 + (random() * 1e8)::int, 'x', 1 ON CONFLICT DO NOTHING",
)
"""Statements as of a web application: by key, sorted, aggregated, procedural, JSON, joins, writes."""


class Database(Protocol):
    """A running Postgres, as the fixtures make it."""

    pid: int

    def connect(self, **options: Any) -> Any:
        """Return a connection that commits each statement."""
        ...


@contextlib.contextmanager
def recording(path: Path, *target: str) -> Iterator[None]:
    """Record what `target` says (`-p PID`) while entered."""
    control, answers = path.with_suffix(".control"), path.with_suffix(".answers")
    os.mkfifo(control)
    os.mkfifo(answers)
    command = ["perf", "record", "-q", "-e", "cpu-clock", "-F", RATE, "--call-graph", f"dwarf,{DUMP_BYTES}"]
    # Started off, and switched on with an answer: whatever is started after that is recorded.
    command += ["-D", "-1", f"--control=fifo:{control},{answers}", "-o", str(path), *target]
    perf = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        with control.open("w") as commands, answers.open() as answered:
            commands.write("enable\n")
            commands.flush()
            assert answered.readline().strip("\n\0") == "ack"
            yield
            perf.send_signal(signal.SIGINT)
            _, errors = perf.communicate(timeout=60)
    except BaseException:
        perf.kill()
        perf.wait()
        raise
    assert path.is_file(), errors.decode()


def record(path: Path, *command: str) -> None:
    """Record a program from its start to its end."""
    options = ["perf", "record", "-q", "-e", "cpu-clock", "-F", RATE, "--call-graph", f"dwarf,{DUMP_BYTES}"]
    subprocess.run([*options, "-o", str(path), *command], check=True, capture_output=True, timeout=120)


def prepare(database: Database) -> None:
    """Make the tables that the mixed load needs."""
    with database.connect() as connection:
        connection.execute(SUMMED)
        connection.execute(PREPARE)


@contextlib.contextmanager
def mixed_load(
    database: Database, cpu_s: float, statements: Sequence[str] = MIXED, clients: int = 3
) -> Iterator[list[int]]:
    """Run statements until the backends have used so much CPU; then enter, connections still open."""
    connections = [database.connect() for _ in range(clients)]
    pids = [connection.info.backend_pid for connection in connections]
    stop = threading.Event()

    def turns(client: int) -> None:
        number = client
        while not stop.is_set():
            connections[client].execute(statements[number % len(statements)])
            number += 1

    threads = [threading.Thread(target=turns, args=(client,)) for client in range(clients)]
    try:
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 60
        while sum(map(cpu_of, pids)) < cpu_s * 1e9:
            assert time.monotonic() < deadline, "the backends get no CPU"
            stop.wait(0.05)
        stop.set()
        for thread in threads:
            thread.join(30)
        yield pids
    finally:
        stop.set()
        for connection in connections:
            connection.close()


def cpu_of(pid: int) -> int:
    """Return the CPU nanoseconds of a process."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])
