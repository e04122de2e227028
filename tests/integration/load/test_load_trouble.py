"""Servers that are slow, gone or hang up; runs that are interrupted; parents that do not read."""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from quayscope.load.commands import load
from quayscope.load.errors import TargetUnreachable


def one(path: str, rate: float) -> str:
    """A workload of one request."""
    request = f'{{endpoint: "GET /", path: "{path}"}}'
    return f"name: one\nphases:\n  - {{name: only, rate: {rate}, mix: [{request}]}}\n"


def unused_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_arrivals_beyond_the_limit_are_dropped_and_counted(server: Any, driver: Any) -> None:
    """They are errors, the phase is not valid and says that the server was slow."""
    outcome = driver.run(one("/slow?s=0.5", 50), "--duration=1s", "--max-in-flight=5")
    report = outcome.report
    assert outcome.code == 1
    assert report["dropped"] == report["errors"]["dropped"] > 0
    assert report["sent"] + report["dropped"] == report["scheduled"] == 50
    assert report["ok"] == report["sent"] == len(server.arrivals())
    assert any("the server is slower than the rate" in why for why in report["invalid_because"])


def test_slow_answers_do_not_hold_back_arrivals(server: Any, driver: Any) -> None:
    """Sixty requests are in flight at once, and each has its own time."""
    report = driver.run(one("/slow?s=0.6", 100), "--duration=1s").report
    assert report["ok"] == 100
    assert 590 < report["p50_ms"] < 900


def test_an_unreachable_server_ends_with_exit_code_3(driver: Any) -> None:
    """One line says what and where, a second what to do; no traceback."""
    port = unused_port()
    driver.url = f"http://127.0.0.1:{port}"
    outcome = driver.finish(driver.start(one("/", 10), "--duration=1s"))
    assert (outcome.code, outcome.report) == (3, {})
    assert f"nothing answers at http://127.0.0.1:{port}: Connection refused" in outcome.stderr
    assert "next: " in outcome.stderr
    assert "Traceback" not in outcome.stderr


def test_a_listener_that_never_answers_well_is_unreachable_too(driver: Any) -> None:
    """It accepts and hangs up: all requests fail by a named reason, and the exit code is 3."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        driver.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread = threading.Thread(target=hang_up, args=(listener,), daemon=True)
        thread.start()
        outcome = driver.run(one("/", 20), "--duration=0.5s")
    thread.join(5)
    assert outcome.code == 3
    assert outcome.report["errors"] == {"0": 10}
    assert sum(outcome.report["reasons"].values()) == 10
    assert set(outcome.report["reasons"]) <= {
        "connection closed without an answer",
        "connection broke while receiving",
        "connection broke while sending",
    }


def hang_up(listener: socket.socket) -> None:
    """Accept connections and close them until the listener closes."""
    listener.settimeout(0.7)
    try:
        while True:
            connection, _ = listener.accept()
            connection.recv(100)
            connection.close()
    except OSError:
        return


def test_an_answer_cut_short_is_an_error(server: Any, driver: Any) -> None:
    """Its 200 does not count."""
    outcome = driver.run(one("/cut", 20), "--duration=0.5s")
    assert outcome.report["errors"] == {"0": 10}
    assert outcome.report["reasons"] == {"answer cut short": 10}


def test_a_server_that_dies_in_mid_run_costs_errors_only(driver: Any, tmp_path: Path) -> None:
    """The run goes on to its end and reports both halves."""
    process, port = start_idle_closer(tmp_path)
    driver.url = f"http://127.0.0.1:{port}"
    running = driver.start(one("/", 50), "--duration=1.6s")
    wait_for_sent(running, driver)
    process.kill()
    process.wait()
    outcome = driver.finish(running)
    assert outcome.code == 1
    assert outcome.report["ok"] > 10
    assert outcome.report["reasons"]["could not connect"] > 10
    assert outcome.report["sent"] == 80


def start_idle_closer(directory: Path) -> tuple[subprocess.Popen[bytes], int]:
    """Start the server with the short keep-alive."""
    ready = directory / "idle-closer"
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("idle_closing_server.py")), str(ready)]
    )
    deadline = time.monotonic() + 20
    while not ready.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process, int(ready.read_text())


def wait_for_sent(running: subprocess.Popen[str], driver: Any) -> None:
    """Wait until the run is under way: it has sockets, and has had them for a while."""
    deadline = time.monotonic() + 15
    while not sockets(running.pid):
        assert running.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.7)


def sockets(pid: int) -> int:
    """How many sockets a process has open."""
    try:
        links = [str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()]
    except FileNotFoundError:
        return 0
    return sum(link.startswith("socket:") for link in links)


def test_connections_closed_between_requests_cost_no_cpu(driver: Any, tmp_path: Path) -> None:
    """A server that hangs up after 30 ms of silence: every request is ok, and the driver does not spin."""
    process, port = start_idle_closer(tmp_path)
    try:
        driver.url = f"http://127.0.0.1:{port}"
        before = time.process_time()
        outcome = driver.run(one("/", 10), "--duration=2s")
        spent = time.process_time() - before
    finally:
        process.kill()
        process.wait()
    assert (outcome.code, outcome.report["ok"]) == (0, 20)
    assert spent < 0.8


@pytest.mark.parametrize(
    ("number", "answer_s", "answered"), [(signal.SIGINT, 8, False), (signal.SIGTERM, 0.4, True)]
)
def test_an_interrupted_run_still_reports(
    server: Any, driver: Any, number: signal.Signals, answer_s: float, answered: bool
) -> None:
    """It stops sending, waits at most 2 s for what is in flight, and says that it was interrupted."""
    process = driver.start(one(f"/slow?s={answer_s}", 20), "--duration=30s")
    deadline = time.monotonic() + 15
    seen = 0
    while seen < 10:
        assert time.monotonic() < deadline
        time.sleep(0.05)
        seen += len(server.arrivals())
    process.send_signal(number)
    asked = time.monotonic()
    outcome = driver.finish(process)
    assert time.monotonic() - asked < 4.0
    report = outcome.report
    assert outcome.code == 0
    assert report["interrupted"] is True
    assert report["sent"] == report["scheduled"] >= 10
    assert report["unanswered"] == (0 if answered else report["sent"])
    assert report["ok"] == (report["sent"] if answered else 0)
    assert report["errors"] == {}
    assert "interrupted" in outcome.stdout
    assert "Traceback" not in outcome.stderr


def test_progress_goes_to_the_parent_as_json_lines(server: Any, driver: Any) -> None:
    """One a second, with phase, counts and the last second's p99."""
    reader, writer = os.pipe()
    try:
        outcome = driver.run(one("/x", 50), "--duration=2.2s", f"--progress-fd={writer}")
        lines = [json.loads(line) for line in os.read(reader, 65536).splitlines()]
    finally:
        os.close(reader)
        os.close(writer)
    assert outcome.code == 0
    assert len(lines) == 3
    assert [line["phase"] for line in lines] == ["only", "only", "draining"]
    assert lines[-1] | {"elapsed_s": 0, "p99_ms": 0} == {
        "elapsed_s": 0,
        "phase": "draining",
        "sent": 110,
        "ok": 110,
        "errors": 0,
        "in_flight": 0,
        "p99_ms": 0,
    }
    assert lines[0]["p99_ms"] > 0
    assert 40 <= lines[0]["sent"] <= 72


def test_a_parent_that_does_not_read_stops_nothing(server: Any, driver: Any) -> None:
    """A full pipe loses lines; the run is on time."""
    reader, writer = os.pipe()
    try:
        os.set_blocking(writer, False)
        while True:
            try:
                os.write(writer, b"x" * 4096)
            except BlockingIOError:
                break
        os.set_blocking(writer, True)
        outcome = driver.run(one("/x", 50), "--duration=1.5s", f"--progress-fd={writer}")
    finally:
        os.close(reader)
        os.close(writer)
    assert (outcome.code, outcome.report["ok"]) == (0, 75)


def test_nothing_is_left_open(server: Any, driver: Any) -> None:
    """A run in this process gives back each descriptor it took."""
    driver.run(one("/x", 20), "--duration=0.3s")
    gc.collect()  # what other tests have left to be collected is not this one's
    before = len(list(Path("/proc/self/fd").iterdir()))
    driver.run(one("/x", 100), "--duration=0.5s")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_refused_port_raises_before_anything_is_sent(driver: Any) -> None:
    """Programs get the exception, with its exit code."""
    driver.url = f"http://127.0.0.1:{unused_port()}"
    with pytest.raises(TargetUnreachable) as caught:
        load.main(args=driver.arguments(one("/", 1)), standalone_mode=False)
    assert caught.value.exit_code == 3
