"""The doctor on this machine: its exit codes, filters, other namespaces, processes that end under it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from plain_user import PlainPython
from quayscope.sidecar import procfs
from quayscope.sidecar.doctor import files, memory, network, perf, pyspy
from quayscope.sidecar.doctor.examination import NAMES
from quayscope.sidecar.doctor.standing import read_standing
from quayscope.sidecar.doctor.subjects import MAX_SUBJECTS, choose, subject

DOCTOR = ["-m", "quayscope.cli.main", "sidecar", "doctor"]


@pytest.fixture
def waiting() -> Iterator[Callable[..., int]]:
    """Start Python processes that wait, and end them."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*prefix: str, arguments: tuple[str, ...] = ()) -> int:
        code = "print(flush=True); import signal; signal.pause()"
        command = [*prefix, sys.executable, "-c", code, *arguments]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout is not None
        process.stdout.readline()
        return process.pid

    yield start
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def _doctor(
    *arguments: str, refuse: tuple[str, ...] = (), checkout: Path | None = None
) -> tuple[int, str, str]:
    command = [sys.executable, *DOCTOR, *arguments]
    if refuse:
        assert checkout is not None
        command = [sys.executable, str(checkout / "tests" / "refuse_syscalls.py"), *refuse, "--", *command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout, done.stderr


def _by_name(text: str) -> dict[str, dict[str, Any]]:
    return {attempt["name"]: attempt for attempt in json.loads(text)["attempts"]}


def test_tries_everything_on_a_process(waiting: Callable[..., int], tmp_path: Path) -> None:
    """Every attempt is made, each with what was called; what works is required with success."""
    folders = ("--cache", str(tmp_path), "--spool", str(tmp_path))
    required = ("--require", "schedstat", "--require", "cache_directory")
    code, printed, said = _doctor("--pid", str(waiting()), "--json", *folders, *required)
    assert code == 0, said
    attempts = _by_name(printed)
    assert set(attempts) == set(NAMES)
    assert all(attempt["call"] for attempt in attempts.values())
    assert not list(tmp_path.iterdir())


def test_exit_codes(waiting: Callable[..., int]) -> None:
    """1 when what is required does not work; 2 for an unknown name and for a process that is not visible."""
    pid = str(waiting())
    code, printed, said = _doctor("--pid", pid, "--spool", "/nowhere", "--require", "spool_directory")
    assert code == 1
    assert "spool_directory" in said
    assert "emptyDir" in printed
    assert _doctor("--pid", pid, "--require", "magic")[0] == 2
    code, _, said = _doctor("--pid", "4194303")
    assert code == 2
    assert "shareProcessNamespace" in said


def test_tells_a_filter_from_the_kernel(waiting: Callable[..., int], checkout: Path) -> None:
    """A system call that a seccomp filter refuses is said to be the filter's doing."""
    refuse = ("perf_event_open", "process_vm_readv", "ptrace")
    _, printed, _ = _doctor("--pid", str(waiting()), "--json", refuse=refuse, checkout=checkout)
    attempts = _by_name(printed)
    for name in ("perf_user", "perf_kernel", "process_vm_readv", "py_spy"):
        assert attempts[name]["permitted"] is False
        assert "seccomp filter answers EPERM" in attempts[name]["why"]
    assert attempts["ring_memory"]["permitted"] is None


def test_other_network_namespace(waiting: Callable[..., int]) -> None:
    """Sockets of a process in another network namespace are asked for by entering it, where permitted."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("only root makes network namespaces")
    ours, theirs = subject(waiting()), subject(waiting("unshare", "--net", "--"))
    assert ours is not None
    assert theirs is not None
    standing = read_standing()
    before = Path("/proc/thread-self/ns/net").readlink()
    assert network.try_socket_queues(ours, standing).call == "sock_diag(AF_UNIX)"
    entered = network.try_socket_queues(theirs, standing)
    assert entered.permitted, entered
    assert entered.call.startswith("setns")
    assert Path("/proc/thread-self/ns/net").readlink() == before


def test_process_that_ended(waiting: Callable[..., int], until: Callable[..., Any]) -> None:
    """A process that ends before it is tried gives refusals, each with its answer, and nothing else."""
    pid = waiting()
    gone = subject(pid)
    assert gone is not None
    assert gone.kind == "python"
    os.kill(pid, signal.SIGKILL)
    until(lambda: (facts := procfs.stat(pid)) is None or facts.state == "Z", 5.0, "it ended")
    standing = read_standing()
    refusals = [
        *perf.try_perf_events(gone, standing),
        memory.try_read_memory(gone, standing),
        memory.try_shared_memory(gone, standing),
        *files.try_process_files(gone, standing)[:2],
        pyspy.try_py_spy(gone, standing),
    ]
    assert not any(attempt.permitted for attempt in refusals)
    assert all(attempt.detail for attempt in refusals)
    assert memory.try_read_memory(gone, standing).remedy.why == "the process has ended"


def test_chooses_few(waiting: Callable[..., int]) -> None:
    """Like processes are tried once; never our own family or a sidecar, and never more than the bound."""
    waiting()
    sidecar = waiting(arguments=("quayscope", "sidecar"))
    chosen, _ = choose()
    assert sidecar not in {one.pid for one in chosen}
    assert len(chosen) <= MAX_SUBJECTS
    assert os.getpid() not in {one.pid for one in chosen}
    assert len({(one.uid, one.cgroup, one.kind) for one in chosen}) == len(chosen)


def test_rings_beyond_the_limit(plain_python: PlainPython) -> None:
    """A user whose locked memory is used up is told which limits there are, and that rings get smaller."""
    if os.geteuid() != 0:
        pytest.skip("only root may run as a user of its own")
    script = """
import mmap, os, resource
from quayscope.sidecar.doctor.perf import try_ring_memory
from quayscope.sidecar.doctor.standing import read_standing
from quayscope.sidecar.native.events import open_owner
resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))
held = [mmap.mmap(open_owner(cpu), 129 * mmap.PAGESIZE) for cpu in sorted(os.sched_getaffinity(0))]
found = try_ring_memory(read_standing())
print(found.permitted, found.errno, found.remedy.why)
"""
    alone = 20_009
    done = subprocess.run(
        [plain_python.executable, "-c", script],
        capture_output=True,
        text=True,
        env=plain_python.environment,
        cwd="/",
        user=alone,
        group=alone,
        extra_groups=[],
    )
    assert done.stdout.startswith("False EPERM"), done
    assert "RLIMIT_MEMLOCK is 64 kB" in done.stdout
