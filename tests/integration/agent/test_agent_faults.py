"""Whatever goes wrong inside the agent stays there: the application serves, its workers live."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from integration.agent.fault_config import HOST_FACING, functions
from integration.agent.serving import Gunicorn, at_once, until
from quayscope.relay import Relay

Serve = Callable[..., Gunicorn]

PATHS = ["/light/x", "/seen/parameters", "/threads/2", "/deep/3", "/seen/bytes", "/sleep/0.002", "/file"]
TROUBLE = re.compile(
    "Traceback|ERROR|CRITICAL|SIGKILL|SIGABRT|terminated by signal|failed to boot|timer expired"
)


@pytest.mark.parametrize("worker_class", ["gevent", "gthread", "sync"])
def test_no_fault_of_ours_reaches_the_application(
    serve: Serve, relay: Relay, full: bool, tmp_path: Path, worker_class: str
) -> None:
    """Each function of the agent raises in turn, in a live worker under load: no request fails, none dies."""
    targets = [name for name in functions() if name not in HOST_FACING]
    # A gevent worker takes its second to notice that it is to end: more of them, to be done sooner.
    workers = 8 if worker_class == "gevent" else 4
    every = 1 if full else {"gevent": 6, "gthread": 8, "sync": 8}[worker_class]
    targets = targets[::every]
    listed, taken, hit = tmp_path / "faults", tmp_path / "taken", tmp_path / "hit"
    listed.write_text("\n".join(targets))
    taken.touch()
    hit.touch()
    gunicorn = serve(
        "--preload",
        f"--workers={workers}",
        "--max-requests=40",
        "--config=python:integration.agent.fault_config",
        worker_class=worker_class,
        environment={
            "AGENT_TEST_FAULTS": str(listed),
            "AGENT_TEST_FAULTS_TAKEN": str(taken),
            "AGENT_TEST_FAULTS_HIT": str(hit),
            "QUAYSCOPE_TRACING": "auto",
            "OTEL_TRACES_SAMPLER": "always_on",
            "QUAYSCOPE_STALL_MS": "5",
        },
    )
    answers: list[int] = []
    deadline = time.monotonic() + 40 + 1.5 * len(targets)

    def client(number: int) -> None:
        count = number
        while taken.stat().st_size < len(targets) and time.monotonic() < deadline:
            answers.append(gunicorn.get(PATHS[count % len(PATHS)])[0])
            count += 1
        # The last ones are broken in workers that have yet to serve.
        answers.extend(gunicorn.get(PATHS[number % len(PATHS)])[0] for _ in range(40))

    at_once(*[lambda n=number: client(n) for number in range(workers)])
    assert taken.stat().st_size >= len(targets)
    # A worker that has just been forked would miss the signal that ends it.
    until(lambda: settled(gunicorn), "no more workers are started")
    assert gunicorn.stop() == 0
    log = gunicorn.log()
    found = set(hit.read_text().split())
    print(f"{worker_class}: {len(targets)} functions, {len(found)} of them called; {len(answers)} requests")
    print("never called:", sorted(set(targets) - found))
    print("reached the application:", sorted(set(re.findall(r"injected into (\S+)", log))))
    assert set(answers) == {200}
    trouble = TROUBLE.search(log)
    assert trouble is None, log[max(0, trouble.start() - 500) :][:4_000]
    assert len(found) > 0.6 * len(targets)
    # Nobody died early: each worker that ended had served its requests.
    booted, rested = log.count("Booting worker"), log.count("Autorestarting worker")
    assert booted - workers <= rested <= booted


def settled(gunicorn: Gunicorn) -> bool:
    booted = gunicorn.log().count("Booting worker")
    time.sleep(1.5)
    return gunicorn.log().count("Booting worker") == booted


def test_without_a_peer_memory_is_bounded(serve: Serve, full: bool) -> None:
    """Nobody listens all the while: requests go on, and the worker does not grow."""
    gunicorn = serve("--preload", environment={"QUAYSCOPE_TRACING": "auto"})
    (pid,) = gunicorn.workers()

    def load(seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for path in PATHS:
                assert gunicorn.get(path)[0] == 200

    def resident_kb() -> int:
        status = Path(f"/proc/{pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1])  # type: ignore[index]

    load(60 if full else 4)
    before = resident_kb()
    load(120 if full else 8)
    after = resident_kb()
    print(f"resident: {before} kB, then {after} kB")
    assert after - before < 4_000
    assert gunicorn.workers() == [pid]
    assert gunicorn.stop() == 0
