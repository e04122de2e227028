"""What the relay asks of a worker, and what the agent leaves to others: signals, programs, imports."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from integration.agent.serving import CHECKOUT, Gunicorn, Kept, left_behind, until
from quayscope.relay import Relay, WorkerSettings

Serve = Callable[..., Gunicorn]


def test_a_worker_does_what_it_is_told(serve: Serve, relay: Relay, kept: Kept) -> None:
    """Off and on, another rate, quarter-second slots, and back to its own when the time is over."""
    gunicorn = serve("--preload", environment={"QUAYSCOPE_MAX_OVERHEAD": "50"})
    (pid,) = until(relay.workers, "the worker says hello")[0][:1]
    relay.tell(WorkerSettings(on=False))
    until(lambda: "fp=" not in gunicorn.json("/seen/plain"), "statements go out as they are")
    counted = until(lambda: kept.requests(), "requests were counted")
    gunicorn.get_often("/light/x", 20)
    written = len(kept.levels("hz"))
    until(lambda: len(kept.levels("hz")) >= written + 2, "the worker has written twice")
    assert kept.requests().get(("GET /light/<name>", 200)) is None, counted
    end = time.time_ns() + 4_000_000_000
    relay.tell(WorkerSettings(on=True, hz=250, slot_ms=250, until_ns=end), pid)
    until(lambda: "fp=" in gunicorn.json("/seen/plain"), "statements have their comment again")
    while time.time_ns() < end:
        assert gunicorn.get("/heavy/x")[0] == 200
    until(
        lambda: gunicorn.get("/heavy/x")[0] == 200 and 100 in kept.levels("hz")[-1:], "its own rate is back"
    )
    assert gunicorn.stop() == 0
    relay.close(5.0)
    assert 250 in kept.levels("hz")
    slots = {about.slot_ns % 10**9 for _, about, _ in kept.samples("process_cpu")}
    assert {250_000_000, 500_000_000, 750_000_000} <= slots <= {0, 250_000_000, 500_000_000, 750_000_000}
    assert kept.counts().get("faults", 0) == kept.counts().get("asked_malformed", 0) == 0


def test_the_agents_thread_imports_nothing(serve: Serve, tmp_path: Path) -> None:
    """With gevent's locks two threads that import may wait for each other for ever: ours never does."""
    imports = tmp_path / "imports"
    imports.touch()
    gunicorn = serve(
        "--preload",
        "--config=python:integration.agent.importing_conf",
        environment={
            "AGENT_TEST_IMPORTS": str(imports),
            "QUAYSCOPE_COLLECTOR": "http://127.0.0.1:1",  # so that it starts a helper too
            "QUAYSCOPE_STALL_MS": "5",
        },
    )
    try:
        until((tmp_path / "agent.sock").exists, "the helper listens")
        end = time.monotonic() + 2.5
        while time.monotonic() < end:
            assert gunicorn.get("/deep/30")[0] == 200
        assert gunicorn.stop() == 0
    finally:
        for pid in left_behind(str(tmp_path / "agent.sock")):
            os.kill(pid, signal.SIGKILL)
    assert imports.read_text() == ""


SCRIPT = """
import os, signal, sys, time
from quayscope.agent import early
from quayscope.agent.cpu import CpuSampler
from quayscope.agent.execs import around_exec
from quayscope.agent.frames import Stacker
from quayscope.agent.slots import SlotLength
from quayscope.agent.turns import Turns

def burn(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass

stacker, length = Stacker(), SlotLength()
sampler = CpuSampler(stacker, Turns(stacker, length, 50_000_000), length, 100)
theirs = []
"""


@pytest.mark.parametrize(
    "body",
    [
        # An earlier handler is still called, and put back.
        """
def handler(*_): theirs.append(1)
signal.signal(signal.SIGPROF, handler)
sampler.start()
burn(0.2)
assert len(theirs) >= 10 and len(sampler.samples.now()) >= 1, theirs
sampler.stop()
assert signal.getsignal(signal.SIGPROF) is handler
""",
        # A later one keeps the signal and its timer; ours ends.
        """
sampler.start()
burn(0.05)
signal.signal(signal.SIGPROF, lambda *_: theirs.append(1))
signal.setitimer(signal.ITIMER_PROF, 0.02, 0.02)
sampler.check()
burn(0.2)
sampler.stop()
assert len(theirs) >= 5
assert signal.getitimer(signal.ITIMER_PROF)[1] == 0.02
assert callable(signal.getsignal(signal.SIGPROF))
signal.setitimer(signal.ITIMER_PROF, 0)
""",
        # Another program that takes this one's place is not killed by the timer.
        """
around_exec(sampler.disarm, sampler.arm)
sampler.start()
burn(0.05)
os.execv(sys.executable, [sys.executable, "-c", "import time\\nwhile time.process_time() < 0.3: pass"])
""",
        # One that cannot leaves the timer running.
        """
around_exec(sampler.disarm, sampler.arm)
sampler.start()
try:
    os.execvp("no-such-program-anywhere", ["x"])
except FileNotFoundError:
    pass
burn(0.2)
sampler.stop()
tables = [table for _, table in sampler.samples.take(everything=True)]
assert sum(row[1] for table in tables for row in table.values()) > 10
""",
        # A child of the process has no timer.
        """
sampler.start()
pid = os.fork()
if not pid:
    burn(0.2)
    os._exit(0 if signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0) else 1)
assert os.waitpid(pid, 0)[1] == 0
sampler.stop()
""",
    ],
    ids=["earlier", "later", "exec", "failed exec", "fork"],
)
def test_the_signal_is_shared(body: str) -> None:
    """Handlers before and after ours, exec and fork: nobody else loses the signal or dies of it."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT + body],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT / "agent")},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr


IN_A_POOL = """
import multiprocessing, subprocess
from concurrent.futures import ThreadPoolExecutor
from quayscope.agent.threads import follow_threads

sampler.start()
follow_threads(sampler.account)
forking = multiprocessing.get_context("fork")

def blocked():
    return signal.SIGPROF in signal.pthread_sigmask(signal.SIG_BLOCK, ())

def die_of_your_own_timer():
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, 0.01)
    burn(0.2)
    os._exit(0)

def fork():
    pid = os.fork()
    if not pid:
        die_of_your_own_timer()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def fork_by_multiprocessing():
    process = forking.Process(target=die_of_your_own_timer)
    process.start()
    process.join()
    return process.exitcode

ASK = "import signal; exit(signal.SIGPROF in signal.pthread_sigmask(signal.SIG_BLOCK, ()))"
ASKING = [sys.executable, "-c", ASK]

def spawn():
    pid = os.posix_spawn(sys.executable, ASKING, os.environ)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

pool = ThreadPoolExecutor(1)
there = lambda work: pool.submit(work).result()
assert there(blocked) and not blocked()
assert (there(fork), there(fork_by_multiprocessing)) == (-signal.SIGPROF, -signal.SIGPROF)
assert there(blocked)
for start in (lambda: subprocess.call(ASKING), spawn):
    assert (start(), there(start)) == (0, 1)
assert there(lambda: subprocess.call(ASKING, preexec_fn=int)) == 0
sampler.stop()
"""


def test_a_pools_children_have_the_signal_back() -> None:
    """What a pool's thread forks may profile itself; a program it starts has the signal as the thread has."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT + IN_A_POOL],  # of forks where there are threads
        env={**os.environ, "PYTHONPATH": str(CHECKOUT / "agent")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
