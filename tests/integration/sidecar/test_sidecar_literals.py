"""No literal leaves: statements with planted secrets run through every part, and every byte is looked at."""

from __future__ import annotations

import http.client
import re
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import duckdb
import pytest

from integration.agent.serving import Gunicorn, at_once, until
from integration.collector.running_collector import RunningCollector
from integration.sidecar.running_sidecar import RunningSidecar
from receiving_server import Received, ReceivingServer
from secret_statements import corpus

_TABLES = (
    "CREATE TABLE users (id bigint, name text, token text, hash text, blob text)",
    "CREATE TABLE t (a text, b text, c text, d text, p text, q text, name text, x text)",
    "CREATE TABLE robots (id int, token text, salt text)",
    "CREATE TABLE b (a text, c text)",
    "CREATE ROLE application LOGIN PASSWORD 'application'",
    "GRANT ALL ON users, t, robots, b TO application",
)
_SHAPE = re.compile(rb"(?=((?:[a-z][0-9]){4}|(?:[0-9][a-z]){4}))")
_LENGTH = 8
"""Characters of a secret that are found; shorter pieces are in any page of random ids."""
_ASKERS = 6


class Secrets:
    """Finds what was planted."""

    def __init__(self, planted: Iterable[tuple[str, str]]) -> None:
        self._pieces: set[bytes] = set()
        self._numbers: set[bytes] = set()
        for text, secret in planted:
            self._pieces.update(secret[at : at + _LENGTH].encode() for at in range(len(secret) - _LENGTH + 1))
            self._numbers.update(number.encode() for number in re.findall(r"(?<!\d)\d{15}(?!\d)", text))

    def within(self, data: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield each planted piece that is in `data` or in what is compressed in it, and what is around."""
        for part in _unpacked(data):
            lowered = part.lower()
            for found in _SHAPE.finditer(lowered):
                if found[1] in self._pieces:
                    yield found[1], part[max(0, found.start() - 80) : found.start() + 80]
            for found in re.finditer(rb"(?<!\d)\d{15}(?!\d)", lowered):
                if found[0] in self._numbers:
                    yield found[0], part[max(0, found.start() - 80) : found.start() + 80]


def _unpacked(data: bytes) -> Iterator[bytes]:
    """Yield `data` and every stream of gzip or zlib that begins anywhere in it."""
    pending = [data]
    while pending:
        part = pending.pop()
        yield part
        for magic, bits in ((b"\x1f\x8b\x08", 31), (b"\x78\x01", 15), (b"\x78\x9c", 15)):
            at = part.find(magic)
            while at >= 0:
                try:
                    inner = zlib.decompressobj(bits).decompress(part[at:])
                except zlib.error:
                    inner = b""
                if len(inner) > 8:
                    pending.append(inner)
                at = part.find(magic, at + 1)


class _Between:
    """Stands between the sidecar and the collector: keeps every byte, and passes it on."""

    def __init__(self, collector: RunningCollector) -> None:
        self._collector = urlsplit(collector.http).netloc
        self.server = ReceivingServer()
        self.server.answer = self._pass

    def _pass(self, received: Received) -> int:
        connection = http.client.HTTPConnection(self._collector, timeout=30)
        headers = {name: value for name, value in received.headers.items() if name != "host"}
        try:
            connection.request("POST", received.path, received.body, headers)
            answer = connection.getresponse()
            answer.read()
            return answer.status
        finally:
            connection.close()


def _stored(folder: Path) -> Iterator[bytes]:
    """Yield everything in the collector's files, as its database gives it back."""
    for path in folder.rglob("*"):
        if path.is_file():
            yield path.read_bytes()
    for path in folder.rglob("*.duckdb"):
        with duckdb.connect(str(path), read_only=True) as database:
            for (table,) in database.execute("SELECT table_name FROM duckdb_tables()").fetchall():
                for row in database.execute(f'SELECT * FROM "{table}"').fetchall():
                    yield b"\0".join(
                        one if isinstance(one, bytes) else str(one).encode("utf-8", "replace") for one in row
                    )


def _ask(served: Gunicorn, how: str, text: str, secret: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=30)
    try:
        connection.request("POST", f"/run/{how}", f"{secret}\n{text}".encode("utf-8", "replace"))
        answer = connection.getresponse()
        answer.read()
        return answer.status
    finally:
        connection.close()


@pytest.fixture
def parts(
    make_server: Callable[..., Any], tmp_path: Path
) -> Iterator[tuple[Gunicorn, _Between, RunningSidecar, RunningCollector]]:
    """An application with agent and tracing, a sidecar that reads its database, and a collector."""
    database = make_server("15")
    with database.connect() as connection:
        for statement in _TABLES:
            connection.execute(statement)
    for name in ("collector", "sidecar", "application"):
        (tmp_path / name).mkdir()
    collector = RunningCollector(tmp_path / "collector").start()
    between = _Between(collector)
    sidecar = RunningSidecar(
        tmp_path / "sidecar",
        f"--collector={between.server.url}",
        f"--postgres={database.pid}",
        f"--postgres-dsn={database.dsn}",
        f"--spool={tmp_path / 'sidecar' / 'spool'}",
        log_level="debug",
    ).start()
    served = Gunicorn(
        tmp_path / "application",
        "--config=python:integration.sidecar.secret_app",
        "--workers=2",
        "--log-level=debug",
        environment={
            "QUAYSCOPE_SOCKET": str(tmp_path / "sidecar" / "socket"),
            "SECRET_GATEWAY": sidecar.url("otlp"),
            "SECRET_DSN": database.dsn.replace("user=postgres", "user=application"),
        },
        application="integration.sidecar.secret_app:app",
        ready="/",
    )
    yield served, between, sidecar, collector
    served.kill()
    sidecar.stop()
    between.server.stop()
    collector.stop()
    database.stop()


def test_no_secret_leaves(
    parts: tuple[Gunicorn, _Between, RunningSidecar, RunningCollector], full: bool
) -> None:
    """Neither what is sent, nor what is stored, nor a log has a part of a secret, whatever failed."""
    served, between, sidecar, collector = parts
    planted = list(corpus(2_000 if full else 250))
    left = iter([(number, *one) for number, one in enumerate(planted)])
    lock = threading.Lock()
    answers = Counter[int]()

    def ask() -> None:
        while True:
            with lock:
                number, text, secret = next(left, (-1, "", ""))
            if number < 0:
                return
            answers[_ask(served, "kept" if number % 2 else "raised", text, secret)] += 1

    at_once(*[ask] * _ASKERS)
    assert answers.keys() == {200, 500}
    assert answers[500] > len(planted) / 8
    _seen_everywhere(between, collector)
    assert served.stop(15) == 0
    assert sidecar.stop() == 0
    assert collector.stop() == 0
    secrets = Secrets(planted)
    sent = [one.body for one in between.server.seen]
    for what, data in {
        "sent": sent,
        "paths and headers": [repr(one[:2]).encode() for one in between.server.seen],
        "stored": _stored(collector.directory / "data"),
        "spooled": [path.read_bytes() for path in sidecar.directory.rglob("*") if path.is_file()],
        "sidecar's log": [sidecar.log().encode()],
        "collector's log": [(collector.directory / "log").read_bytes()],
    }.items():
        found = {piece: around for one in data for piece, around in secrets.within(one)}
        assert not found, (what, len(found), list(found.items())[:5])


def _seen_everywhere(between: _Between, collector: RunningCollector) -> None:
    """The statements went through every part: stalls, spans of both ways, sessions of the database."""

    def functions(sampler: str) -> int:
        rows = collector.get("breakdown", type="block", by="sql", match=f"sampler={sampler}")["rows"]
        return len({row["sql"] for row in rows})

    def spans() -> Iterator[bytes]:
        for received in list(between.server.taken):
            yield from _unpacked(received.body)

    until(lambda: functions("agent") > 60, "statements of the agent's", 30)
    until(lambda: functions("sessions") > 60, "statements of the database's", 30)
    for scope in (b"opentelemetry.instrumentation.psycopg2", b"opentelemetry.instrumentation.flask"):
        until(lambda: any(scope in part for part in spans()), scope.decode(), 30)  # noqa: B023 - at once
