"""Load by pgbench whose every statement says which one it is, and when each was sent and answered.

A script is one statement in a transaction of its own. pgbench logs for each transaction its client, its
number in that client and its end; client and number stand in the statement's comment too. A client's next
statement is sent after that: how long one took is logged as well, but the end less that may lie behind the
beginning, since it reads its clock once for the one and again for the other.

pgbench counts time by the monotonic clock, and reads once, when it starts, by how much that is behind the
real one: from one clock and then from the other. What comes between is how much all its times are too early;
that was 0.1 to 0.2 ms once in a dozen starts on a busy machine. So some statements keep what the server's
clock says while they run: it must lie between when they were sent and answered, which tells the error to some
20 us.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["LOADS", "ROWS", "Bracket", "Pgbench", "early_ns", "fill", "serial"]

ROWS = 20_000
_PROGRAM = Path("/usr/lib/postgresql/15/bin/pgbench")
_SERIAL = re.compile(r"run='(\d+)\.(\d+)'")
# In one statement: `n` counts the client's transactions, from 1 as pgbench's log does.
_FORM = "\\set n :n + 1\n\\set id random(1, {rows})\n/*quayscope:run=':client_id.:n'*/ {statement};\n"

LOADS: dict[str, Sequence[tuple[str, int]]] = {
    "oltp": (
        ("SELECT name FROM hot WHERE id = :id", 4),
        ("UPDATE hot SET kind = kind + 1 WHERE id = :id", 3),
        ("INSERT INTO history (hot, at) VALUES (:id, now())", 2),
        (
            "SELECT h.name, o.name FROM hot h JOIN hot o ON o.id = h.kind WHERE h.id BETWEEN :id AND :id + 9",
            2,
        ),
    ),
    "mixed": (
        ("SELECT name FROM hot WHERE id = :id", 20),
        ("UPDATE hot SET kind = kind + 1 WHERE id BETWEEN :id AND :id + 30", 6),
        ("SELECT kind % 10, count(*), max(name) FROM hot WHERE id > :id GROUP BY 1 ORDER BY 2", 6),
        ("SELECT count(*) FROM hot a JOIN hot b ON b.id = a.kind + 1 WHERE a.name < b.name", 2),
        ("SELECT string_agg(upper(name), ',') FROM hot WHERE id BETWEEN :id AND :id + 2000", 6),
    ),
    "slow": (
        ("SELECT count(*), max(md5(g::text)) FROM generate_series(1, 200000) g WHERE g <> :id", 1),
        ("SELECT count(*) FROM hot a JOIN hot b ON b.kind = a.kind WHERE a.name < b.name AND a.id <> :id", 3),
        ("SELECT max(a.name || b.name) FROM hot a, hot b WHERE a.id < 30 AND b.id < 5000 AND b.id <> :id", 6),
    ),
}
"""Statements and their weights: below a millisecond, from there to some tens, and tenths of a second."""
_MOMENT = ("INSERT INTO moments VALUES (:client_id, :n, clock_timestamp())", 1)
_MOMENTS = "SELECT client, number, extract(epoch FROM at) FROM moments"

_TABLES = f"""
DROP TABLE IF EXISTS hot, history, moments;
CREATE TABLE hot AS SELECT g AS id, md5(g::text) AS name, (g * 7919) % 1000 AS kind
  FROM generate_series(1, {ROWS}) g;
CREATE UNIQUE INDEX ON hot (id);
CREATE TABLE history (hot int, at timestamptz);
CREATE TABLE moments (client int, number int, at timestamptz);
ALTER SYSTEM SET max_parallel_workers_per_gather = 0;
SELECT pg_reload_conf();
ANALYZE hot;
"""

_OURS = "FROM pg_stat_activity WHERE application_name = 'pgbench'"
_BACKENDS = f"SELECT pid {_OURS}"
_END = f"SELECT pg_terminate_backend(pid) {_OURS}"


class Bracket(NamedTuple):
    """Between these moments a statement was sent and answered; `script` is its place.

    Unix nanoseconds as they were when pgbench began, counted on by the monotonic clock.
    """

    sent_ns: int
    answered_ns: int
    script: int


def fill(server: Any) -> None:
    """Make the tables of the loads."""
    with server.connect() as connection:
        for statement in _TABLES.split(";\n"):
            if statement.strip():
                connection.execute(statement.encode())


def serial(text: str) -> tuple[int, int] | None:
    """Return the client and number that a statement's comment names."""
    match = _SERIAL.search(text)
    return None if match is None else (int(match[1]), int(match[2]))


class Pgbench:
    """pgbench on a server while entered; `brackets` afterwards, by client and number.

    `seconds` bounds it in case nobody leaves. `early_ns` is how much its own times were too early, at least
    and at most: the brackets are not.
    """

    def __init__(
        self, server: Any, folder: Path, load: Sequence[tuple[str, int]], clients: int, seconds: int = 600
    ) -> None:
        self._server = server
        self._folder = folder
        self._command = [str(_PROGRAM), "-n", "-h", "127.0.0.1", "-p", str(server.port), "-U", "postgres"]
        self._command += ["-c", str(clients), "-T", str(seconds), "-D", "n=0", "-l"]
        self._command += [f"--log-prefix={folder / 'log'}"]
        for number, (statement, weight) in enumerate((*load, _MOMENT)):
            script = folder / f"{number}.sql"
            script.write_text(_FORM.format(rows=ROWS, statement=statement))
            self._command += ["-f", f"{script}@{weight}"]
        self.brackets: dict[tuple[int, int], Bracket] = {}
        self.early_ns = (0, 0)

    def __enter__(self) -> Pgbench:
        with self._server.connect() as connection:
            connection.execute("TRUNCATE moments")
        self._process = subprocess.Popen(
            [*self._command, "postgres"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        return self

    def backends(self) -> list[int]:
        """The pids of its backends."""
        with self._server.connect() as connection:
            return [pid for (pid,) in connection.execute(_BACKENDS)]

    def __exit__(self, *_: object) -> None:
        """End its connections, and with them it: so it writes its log to the end."""
        assert self._process.poll() is None, self._process.communicate()[1].decode()
        with self._server.connect() as connection:
            connection.execute(_END)
        self._process.communicate(timeout=20)
        logged = {(client, number): bracket for client, number, bracket in self._logged()}
        with self._server.connect() as connection:
            moments = connection.execute(_MOMENTS).fetchall()
        least_ns, most_ns = self.early_ns = early_ns(
            (round(at * 1_000_000_000), logged[client, number])
            for client, number, at in moments
            if (client, number) in logged
        )
        for which, (sent_ns, answered_ns, script) in logged.items():
            self.brackets[which] = Bracket(sent_ns + least_ns, answered_ns + most_ns, script)

    def _logged(self) -> Iterator[tuple[int, int, Bracket]]:
        ends: dict[int, int] = {}
        for path in self._folder.glob("log.*"):
            for line in path.read_text().splitlines():
                with contextlib.suppress(ValueError):  # the last line may be cut
                    client, number, took_us, script, seconds, us = map(int, line.split()[:6])
                    end_ns = (seconds * 1_000_000 + us) * 1000
                    began_ns = ends.get(client, end_ns - took_us * 1000)
                    ends[client] = end_ns
                    # Each time is cut to the microsecond.
                    yield client, number, Bracket(began_ns - 2000, end_ns + 2000, script)


def early_ns(moments: Iterable[tuple[int, Bracket]]) -> tuple[int, int]:
    """Return by how much brackets are too early at least and at most, 0 twice where they need not be.

    Of each there is a moment (Unix ns) at which its statement was running.
    """
    found = [(at_ns - answered_ns, at_ns - sent_ns) for at_ns, (sent_ns, answered_ns, _) in moments]
    if not found:
        return 0, 0
    least_ns, most_ns = max(least for least, _ in found), min(most for _, most in found)
    assert least_ns <= most_ns, "the machine's clock was set while pgbench ran"
    return (0, 0) if least_ns <= 0 <= most_ns else (least_ns, most_ns)
