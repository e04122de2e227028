"""The application's own account of CPU."""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from quayscope.load.demo.registry.ledger import RULE, Account, Ledger, ledger_cpu, read_ledgers

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment


def burn(cpu_s: float) -> None:
    until = time.thread_time() + cpu_s
    while time.thread_time() < until:
        pass


def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Burns 50 ms at `/burn`, sleeps 50 ms at `/sleep`, fails at `/fail`; answers with the body."""
    path = environ["PATH_INFO"]
    if path != "/unknown":
        environ[RULE] = path
    if path == "/burn":
        burn(0.05)
    if path == "/sleep":
        time.sleep(0.05)
    if path == "/fail":
        raise RuntimeError
    start_response("200 OK", [])
    return [environ["wsgi.input"].read()]


def ask(ledger: Ledger, path: str, body: bytes = b"") -> tuple[str, bytes]:
    status: list[str] = []

    def start_response(line: str, headers: Any, exc_info: Any = None) -> Any:
        status.append(line)

    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": path, "wsgi.input": io.BytesIO(body)}
    answer = b"".join(ledger(environ, start_response))
    return status[0], answer


def test_cpu_is_counted_and_waiting_is_not(tmp_path: Path) -> None:
    """50 ms of CPU count as 50 ms, 50 ms of sleep as wall time alone."""
    ledger = Ledger(application, tmp_path, 1000)
    for _ in range(3):
        ask(ledger, "/burn")
        ask(ledger, "/sleep")
    ledger.write()
    accounts = read_ledgers(tmp_path)
    assert accounts["GET /burn"].requests == 3
    assert accounts["GET /burn"].cpu_s == pytest.approx(0.15, rel=0.05)
    assert accounts["GET /sleep"].cpu_s < 0.01
    assert accounts["GET /sleep"].wall_s >= 0.15
    assert ledger_cpu(tmp_path)["GET /burn"] == accounts["GET /burn"].cpu_s


def test_requests_without_a_route_and_failed_ones_are_counted(tmp_path: Path) -> None:
    """What matched no route has an account of its own; an exception passes and is counted."""
    ledger = Ledger(application, tmp_path, 1000)
    ask(ledger, "/unknown")
    with pytest.raises(RuntimeError):
        ask(ledger, "/fail")
    ledger.write()
    assert {name: account.requests for name, account in read_ledgers(tmp_path).items()} == {
        "GET (no route)": 1,
        "GET /fail": 1,
    }


def test_body_is_read_before_and_bounded(tmp_path: Path) -> None:
    """The application gets the body; one above the limit is refused with 413."""
    ledger = Ledger(application, tmp_path, 10)
    assert ask(ledger, "/echo", b"0123456789") == ("200 OK", b"0123456789")
    assert ask(ledger, "/echo", b"0123456789a")[0].startswith("413")


def test_it_writes_by_itself_and_as_a_whole(tmp_path: Path) -> None:
    """The first request is written at once, later ones when a second has passed or on demand."""
    ledger = Ledger(application, tmp_path, 10)
    ask(ledger, "/one")
    ask(ledger, "/one")
    file = tmp_path / f"ledger-{os.getpid()}.json"
    assert list(tmp_path.iterdir()) == [file]
    assert read_ledgers(tmp_path)["GET /one"].requests == 1
    ledger.write_if_due()
    assert read_ledgers(tmp_path)["GET /one"].requests == 1
    ledger.write()
    assert read_ledgers(tmp_path)["GET /one"].requests == 2
    assert json.loads(file.read_text())["written"] == pytest.approx(time.time(), abs=5)


def test_workers_add_up(tmp_path: Path) -> None:
    """Ledgers of several processes, ended ones too, are summed."""
    for pid in (1, 2):
        content = {
            "pid": pid,
            "written": 0.0,
            "endpoints": {"GET /": {"requests": 1, "cpu_s": 0.5, "wall_s": 1.0}},
        }
        (tmp_path / f"ledger-{pid}.json").write_text(json.dumps(content))
    assert read_ledgers(tmp_path) == {"GET /": Account(2, 1.0, 2.0)}


def test_a_directory_that_is_gone_fails_no_request(tmp_path: Path) -> None:
    """Requests are answered though the ledger cannot be written."""
    ledger = Ledger(application, tmp_path / "gone", 10)
    assert ask(ledger, "/one")[0] == "200 OK"
