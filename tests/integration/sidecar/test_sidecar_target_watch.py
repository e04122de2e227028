"""Targets kept current: real processes that come, become something else, end and give their pid away."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from plain_user import PlainPython, as_nobody
from quayscope.sidecar import procfs
from quayscope.sidecar.targets.pod import Pod
from quayscope.sidecar.targets.watch import Target, TargetWatch

_LAST_PID = Path("/proc/sys/kernel/ns_last_pid")


@contextmanager
def _running(*arguments: str, title: str | None = None) -> Iterator[subprocess.Popen[bytes]]:
    command = list(arguments)
    executable = None
    if title is not None:
        command, executable = [title], arguments[0]
    # Of another parent than the watch: what the sidecar starts itself is no target.
    process = subprocess.Popen(command, executable=executable, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _watch(monkeypatch: pytest.MonkeyPatch) -> TargetWatch:
    """A watch that takes this process for another one than its own: its children are seen."""
    monkeypatch.setattr(os, "getpid", lambda: 2**22 + 1)
    return TargetWatch(Pod())


def _of(watch: TargetWatch, pid: int) -> Target | None:
    return next((target for target in watch.targets() if target.pid == pid), None)


def test_kinds_of_real_processes(
    monkeypatch: pytest.MonkeyPatch, postgres16: Any, until: Callable[..., Any]
) -> None:
    """A server with its backends, nginx, a gunicorn master and worker, a background worker."""
    watch = _watch(monkeypatch)
    fork = "import os, sys, time; os.fork(); print(flush=True); time.sleep(60)"
    with ExitStack() as stack:
        connection = stack.enter_context(postgres16.connect())
        nginx = stack.enter_context(_running("/bin/cat", title="nginx: worker process"))
        background = stack.enter_context(_running(sys.executable, "-c", "input()"))
        # Its arguments are those of gunicorn; what it runs is not asked.
        script = Path(stack.enter_context(_folder())) / "gunicorn"
        script.write_text(fork)
        master = stack.enter_context(
            _running(sys.executable, str(script), "-c", "x.py", "registry:application")
        )
        assert master.stdout is not None
        master.stdout.readline()

        def workers() -> list[Target]:
            watch.scan()
            return [target for target in watch.targets() if target.parent == master.pid]

        (worker,) = until(workers, 5.0, "the worker is seen")
        by_pid = {target.pid: target for target in watch.targets()}
        assert by_pid[master.pid].role == "registry master"
        assert (worker.kind, worker.role) == ("python", "registry")
        assert worker.labels["service_name"] == "quay-app"
        assert by_pid[postgres16.pid].role == "postmaster"
        backend = by_pid[connection.info.backend_pid]
        assert (backend.kind, backend.role) == ("postgres", "client backend")
        assert {"checkpointer", "walwriter"} <= {target.role for target in watch.targets()}
        # /bin/cat by another name: only the executable counts.
        assert by_pid[nginx.pid].kind == "other"
        assert by_pid[background.pid].role == "inline"
        assert os.getppid() in by_pid
        os.kill(worker.pid, signal.SIGKILL)


@contextmanager
def _folder() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="quayscope-watch-") as name:
        yield name


def test_a_real_nginx(monkeypatch: pytest.MonkeyPatch, until: Callable[..., Any]) -> None:
    """Its master and its worker are told apart by their titles."""
    program = shutil.which("nginx") or "/usr/sbin/nginx"
    if not os.access(program, os.X_OK):
        pytest.skip("no nginx")
    watch = _watch(monkeypatch)
    with _folder() as folder:
        configuration = Path(folder, "nginx.conf")
        configuration.write_text(
            f"daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/log;\n"
            f"events {{}}\nhttp {{ access_log off; server {{ listen unix:{folder}/socket; }} }}\n"
        )
        with _running(program, "-e", f"{folder}/log", "-c", str(configuration)) as master:

            def roles() -> set[str]:
                watch.scan()
                family = [target for target in watch.targets() if master.pid in (target.pid, target.parent)]
                return {target.role for target in family if target.kind == "nginx"}

            until(lambda: roles() == {"nginx master", "nginx worker"}, 10.0, "both are seen")
            # Killed, it would leave its worker behind.
            master.terminate()
            master.wait(10)


@pytest.mark.parametrize("older_s", [0.0, 3600.0], ids=["young", "old"])
def test_a_process_that_becomes_another_program(
    monkeypatch: pytest.MonkeyPatch, until: Callable[..., Any], older_s: float
) -> None:
    """exec is seen while the process is young, and of an old one in its turn, by its arguments."""
    other = "sys.executable, '-m', 'http.server', '0', '--bind', '127.0.0.1'"
    code = f"import os, sys; input(); os.execv(sys.executable, [{other}])"
    watch = _watch(monkeypatch)
    watch._clock = lambda: time.clock_gettime(time.CLOCK_BOOTTIME) + older_s
    with _running(sys.executable, "-c", code) as child:

        def role(wanted: str) -> bool:
            watch.scan()
            found = _of(watch, child.pid)
            return found is not None and found.role == wanted

        until(lambda: role("inline"), 5.0)
        assert child.stdin is not None
        child.stdin.write(b"\n")
        child.stdin.flush()
        until(lambda: role("server"), 20.0, "the other program is seen")


def test_a_pid_that_is_given_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The old target goes and the new one comes, though no scan fell between them."""
    if not os.access(_LAST_PID, os.W_OK):
        pytest.skip("may not choose the next pid")
    watch = _watch(monkeypatch)
    for _ in range(100):
        with _running("/bin/cat") as first:
            watch.scan()
            old = _of(watch, first.pid)
        assert old is not None
        _LAST_PID.write_text(str(first.pid - 1))
        with _running("/bin/sleep", "60") as second:
            if second.pid != first.pid:
                continue  # another process of this machine was faster
            changes = watch.scan()
            found = _of(watch, second.pid)
            assert found is not None
            assert found.start_ticks >= old.start_ticks
            assert found.identity.program == "sleep"
            assert found in changes.came
            # Within one clock tick they cannot be told apart by time; by what they are, they are.
            assert old in changes.gone or found.start_ticks == old.start_ticks
            return
    pytest.skip("the pid was never given again")


@pytest.mark.alone
def test_a_scan_is_cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """With 200 processes that are known, a scan takes at most 1 ms of CPU."""
    with ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(_running("/bin/cat"))
        watch = _watch(monkeypatch)
        watch.scan()
        monkeypatch.setattr(watch, "_clock", lambda: time.clock_gettime(time.CLOCK_BOOTTIME) + 60)
        watch.scan()
        took = []
        for _ in range(40):
            began = time.thread_time_ns()
            watch.scan()
            took.append(time.thread_time_ns() - began)
        listed = len(list(procfs.pids()))
    median_ms = sorted(took)[len(took) // 2] / 1e6
    print(f"{median_ms:.2f} ms a scan of {listed} processes")
    assert median_ms <= max(1.0, listed / 200)


def test_the_command_lists_targets(postgres16: Any) -> None:
    """`quayscope sidecar targets` shows a table, and JSON where a script asks."""

    def listed(*arguments: str) -> str:
        command = [sys.executable, "-m", "quayscope.cli.main", "sidecar", "targets", "--target", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout

    found = json.loads(listed(str(postgres16.pid), "--json"))
    assert {entry["kind"] for entry in found} == {"postgres"}
    postmaster = next(entry for entry in found if entry["pid"] == postgres16.pid)
    assert postmaster["labels"]["role"] == "postmaster"
    assert {entry["parent"] for entry in found} >= {postgres16.pid}
    table = listed("postgres").splitlines()
    assert table[0].split() == ["PID", "KIND", "SERVICE", "ROLE", "CONTAINER", "WHAT"]
    assert any(line.split()[:3] == [str(postgres16.pid), "postgres", "quay-database"] for line in table)


def test_another_users_processes_are_known_by_what_is_public(plain_python: PlainPython) -> None:
    """Without the right to read an executable, its name and arguments still tell a background worker."""
    code = "import time; print(flush=True); time.sleep(60)"
    with _folder() as folder:
        Path(folder, "nightlyworker.py").write_text(code)
        with _running(sys.executable, f"{folder}/nightlyworker.py") as child:
            assert child.stdout is not None
            child.stdout.readline()
            listed = subprocess.run(
                [plain_python.executable, "-m", "quayscope.cli.main", "sidecar", "targets", "--json"],
                env=plain_python.environment,
                cwd="/",
                capture_output=True,
                check=True,
                timeout=30,
                **as_nobody(),
            ).stdout
            found = next(entry for entry in json.loads(listed) if entry["pid"] == child.pid)
    assert (found["kind"], found["labels"]["role"]) == ("python", "nightlyworker")


def test_what_ended_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that came and went leave nothing behind."""
    watch = _watch(monkeypatch)
    watch.scan()
    pids = []
    for _ in range(3):
        with ExitStack() as stack:
            for _ in range(50):
                pids.append(stack.enter_context(_running("/bin/cat")).pid)
            assert {target.pid for target in watch.scan().came} >= set(pids[-50:])
        assert {target.pid for target in watch.scan().gone} >= set(pids[-50:])
    assert not set(pids) & watch._held.keys()
    assert not set(pids) & watch._young
    for _ in range(200):
        watch.scan()
    assert not set(pids) & set(watch._queue)
