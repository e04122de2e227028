"""The agent as a guest: workers start, serve and end as they do without it."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from integration.agent.serving import Gunicorn, Kept, at_once, process_cpu_ns, until
from quayscope.agent.commands import agent
from quayscope.relay import Relay

Serve = Callable[..., Gunicorn]


def test_switched_off_it_does_nothing(serve: Serve, relay: Relay, kept: Kept) -> None:
    """With QUAYSCOPE_AGENT=off nothing is loaded or patched, no timer runs and nobody connects."""
    gunicorn = serve("--preload", environment={"QUAYSCOPE_AGENT": "off"})
    seen = gunicorn.json("/agent")
    assert seen["timer"] == 0
    assert not [name for name in seen["loaded"] if name not in ("quayscope.agent", *BOOTSTRAP)]
    assert gunicorn.json("/seen/plain") == "SELECT current_query(), '100%'"
    assert gunicorn.stop() == 0
    relay.close(5.0)
    assert kept.counts("quayscope.relay.") == {}


BOOTSTRAP = tuple(f"quayscope.agent.{name}" for name in ("bootstrap", "early", "faults", "hooks", "settings"))


def test_every_request_is_counted(serve: Serve, relay: Relay, kept: Kept, tmp_path: Path) -> None:
    """From a bundle: each request is counted, failed, unknown, streamed ones and sent files included."""
    assert CliRunner().invoke(agent, ["bundle", str(tmp_path / "stack")]).exit_code == 0
    gunicorn = serve("--preload", "--workers=2", inject=tmp_path / "stack")
    assert gunicorn.get("/file")[1] == Path(__file__).with_name("agent_app.py").read_bytes()
    assert gunicorn.get("/stream")[1] == b"part 0;part 1;part 2;part 3;part 4;"
    assert gunicorn.get("/fails")[0] == 500
    assert gunicorn.get("/secret/path/of/somebody")[0] == 404
    assert gunicorn.get_often("/light/x", 30) == [200] * 30
    # The last requests of a worker leave with it.
    assert gunicorn.stop(signal.SIGTERM) == 0
    relay.close(5.0)
    requests = kept.requests()
    requests.pop(("GET /agent", 200))
    assert requests == {
        ("GET /file", 200): 1,
        ("GET /stream", 200): 1,
        ("GET /fails", 500): 1,
        ("GET (no route)", 404): 1,
        ("GET /light/<name>", 200): 30,
    }
    assert "Profiling timer expired" not in gunicorn.log()
    assert {profile.labels["role"] for profile in kept.made} == {"registry"}
    assert kept.counts().get("faults", 0) == 0
    files = {
        frame.file for stack, about, _ in kept.samples("process_cpu") for frame in stack if about.endpoint
    }
    assert any(file.endswith("agent_app.py") for file in files)
    assert not any("/quayscope/" in file for file in files)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT])
def test_workers_end_cleanly(serve: Serve, relay: Relay, kept: Kept, number: int) -> None:
    """A worker that is told to end in any way says its last words and leaves no complaint."""
    gunicorn = serve("--workers=1")
    (pid,) = gunicorn.workers()
    assert gunicorn.get_often("/light/x", 5) == [200] * 5
    os.kill(pid, number)
    until(lambda: pid not in gunicorn.workers(), "the worker ends")
    until(lambda: kept.requests().get(("GET /light/<name>", 200)) == 5, "its requests arrive")
    assert "Profiling timer expired" not in gunicorn.log()
    assert "Traceback" not in gunicorn.log()
    # And its successor serves.
    until(gunicorn.workers, "another worker starts")
    assert gunicorn.get("/light/x")[0] == 200


def test_without_a_relay_requests_go_on(serve: Serve, tmp_path: Path, kept: Kept) -> None:
    """No socket there: no request fails; when a relay comes, it learns how much was dropped."""
    gunicorn = serve("--preload")
    relay = Relay(str(tmp_path / "agent.sock"), kept, window_s=1)
    # Records are written each second: two have gone by with nobody there.
    began = time.monotonic()
    while time.monotonic() - began < 2.2:
        assert gunicorn.get("/light/x")[0] == 200
    relay.start()
    try:
        until(lambda: kept.counts().get("records_dropped", 0) > 0, "drops are told")
    finally:
        gunicorn.stop()
        relay.close(5.0)
    assert kept.counts().get("faults", 0) == 0


def test_a_reader_that_stopped_holds_nobody_up(serve: Serve, tmp_path: Path) -> None:
    """A relay that accepts nobody: no request fails, and what the queue holds is there when it reads."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(tmp_path / "agent.sock"))
        listener.listen()
        gunicorn = serve("--preload")
        depths = [range(first, first + 25) for first in (60, 110)]
        at_once(*[lambda d=d: [gunicorn.get(f"/deep/{depth}") for depth in d] for d in depths])
        assert gunicorn.get_often("/light/x", 50) == [200] * 50
        connection, _ = listener.accept()
        reader = threading.Thread(target=gunicorn.stop)
        reader.start()
        with connection:
            packets = list(iter(lambda: connection.recv(65536), b""))
        reader.join()
        assert gunicorn.process.returncode == 0
    assert max(map(len, packets)) <= 16_000
    counts = [json.loads(packet)["c"] for packet in packets if packet.startswith(b'{"k":"counts"')]
    assert sum(count.get("requests", 0) for count in counts) >= 100
    assert "Traceback" not in gunicorn.log()


@pytest.mark.parametrize("worker_class", ["sync", "gthread"])
def test_other_workers(serve: Serve, relay: Relay, kept: Kept, worker_class: str) -> None:
    """In sync and threaded workers requests are counted, their CPU is right, and the whole is seen."""
    threads = ["--threads=2"] if worker_class == "gthread" else []
    gunicorn = serve(*threads, worker_class=worker_class)
    (pid,) = gunicorn.workers()
    kernel = process_cpu_ns(pid)
    at_once(lambda: gunicorn.get_often("/heavy/x", 40), lambda: gunicorn.get_often("/threads/10", 40))
    true = gunicorn.json("/account")["account"]
    kernel = process_cpu_ns(pid) - kernel
    assert gunicorn.stop() == 0
    relay.close(5.0)
    profiled = kept.cpu(pid)
    assert kept.requests()["GET /heavy/<name>", 200] == 40
    heavy = "GET /heavy/<name>"
    assert true[heavy] * 0.95 < profiled[heavy] < true[heavy] * 1.05 + 40 * 1.5e6
    assert kernel * 0.9 < sum(profiled.values()) < kernel * 1.1 + 400e6
    assert kept.counts().get("faults", 0) == 0


@pytest.mark.parametrize("worker_class", ["gevent", "gthread", "sync"])
def test_the_servers_pipe_for_signals_stays_empty(serve: Serve, worker_class: str) -> None:
    """Signals are taken out again, each 64th or so: full, it has Python complain at each of them."""
    gunicorn = serve("--preload", worker_class=worker_class)
    waiting = []
    for _ in range(8):
        assert gunicorn.get_often("/heavy/x", 20) == [200] * 20
        waiting.append(gunicorn.json("/agent")["signals_waiting"])
    assert max(waiting) <= 128, waiting
    assert waiting != sorted(set(waiting)), waiting
    began = time.monotonic()
    assert gunicorn.stop() == 0
    assert time.monotonic() - began < 5
    assert "Exception ignored" not in gunicorn.log()


@pytest.mark.parametrize("worker_class", ["gevent", "gthread"])
def test_threads_work_for_their_request(serve: Serve, relay: Relay, kept: Kept, worker_class: str) -> None:
    """CPU of a pool's thread, or of one started for the purpose, is its request's, under its own stack."""
    gunicorn = serve(worker_class=worker_class)
    assert gunicorn.get_often("/threads/20", 20) == [200] * 20
    assert gunicorn.stop() == 0
    relay.close(5.0)
    work = sum(
        values[1]
        for stack, about, values in kept.samples("process_cpu")
        if about.endpoint == "GET /threads/<int:milliseconds>" and stack[-1].function.endswith("work")
    )
    assert work > 0.3e9
    assert 0.39e9 < kept.cpu()["GET /threads/<int:milliseconds>"] < 0.5e9
    # What a thread uses before it is known, and after: a tenth of a millisecond each.
    others = sum(
        v[1] for stack, _, v in kept.samples("process_cpu") if stack[0].function == "[other threads]"
    )
    assert others < 0.01e9
