"""The helper process: how it starts, what it keeps and closes, and that it always ends with 0."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from integration.relay.conftest import Start
from integration.relay.helper_process import until

NOWHERE = {"QUAYSCOPE_COLLECTOR": "http://127.0.0.1:1"}


def status(pid: int) -> dict[str, str]:
    """/proc/PID/status by name."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def masked(numbers: str) -> set[int]:
    """The signals of a mask in /proc/PID/status."""
    return {bit + 1 for bit in range(64) if int(numbers, 16) >> bit & 1}


def test_it_is_nobodys_child(start: Start) -> None:
    """The process that was spawned ends with 0 once the helper lives; the spawner has no child left."""
    helper = start(environment=NOWHERE)
    assert (helper.spawn["code"], helper.spawn["children"]) == (0, [])
    pid = helper.pid()
    assert pid not in (helper.spawn["spawned"], helper.spawn["spawner"])
    assert int(status(pid)["PPid"]) == helper.keeper_pid
    assert os.getsid(pid) not in (os.getsid(helper.spawn["spawner"]), pid)
    helper.signal()
    assert helper.ended() == {"ended": pid, "code": 0}
    assert helper.orphans() == [{"ended": pid, "code": 0}]


def test_it_keeps_nothing_of_the_worker_but_the_lock(start: Start) -> None:
    """Descriptors, folder, mask, signals and priority are its own."""
    helper = start(environment=NOWHERE)
    pid = helper.pid()
    until(lambda: "serving" in helper.log(), "it serves")
    folder = Path(f"/proc/{pid}/fd")

    def open_files() -> list[str]:
        names = []
        for entry in folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed since it was listed
                names.append(str(entry.readlink()).partition(":[")[0])
        return sorted(names)

    own = [str(helper.lock), str(helper.log_file), *["/dev/null"] * 3, "anon_inode", "socket"]
    # A connection that asked for its pid may not be forgotten yet.
    until(lambda: open_files() == sorted(own), f"only its own files are open: {open_files()}")
    assert Path(f"/proc/{pid}/cwd").readlink() == Path("/")
    found = status(pid)
    assert found["Umask"] == "0077"
    assert masked(found["SigBlk"]) == set()
    # Broken pipes and full files are errors of the write. 32 and 33 are the C library's own: who ignored
    # them before us has them ignored, and no program can change it.
    assert masked(found["SigIgn"]) - {32, 33} == {13, 25}
    assert os.getpriority(os.PRIO_PROCESS, pid) == min(19, os.getpriority(os.PRIO_PROCESS, 0) + 10)


def test_it_closes_what_it_opens(start: Start) -> None:
    """A hundred workers that came and went leave no descriptor behind."""
    helper = start(environment=NOWHERE)
    pid = helper.pid()

    def open_now() -> int:
        return len(list(Path(f"/proc/{pid}/fd").iterdir()))

    until(lambda: open_now() == 7, "it serves")
    workers = [helper.work(pid=number) for number in range(100)]
    until(lambda: open_now() == 107, "all are connected")
    for worker in workers:
        worker.close()
    until(lambda: open_now() == 7, "all are gone")


def test_it_holds_the_lock_until_its_end(start: Start) -> None:
    """Also while it sends the last: only then may another helper begin."""
    helper = start(environment=NOWHERE)
    helper.work().close()
    assert helper.locked()
    pid = helper.pid()
    helper.signal()
    until(lambda: "ending" in helper.log(), "it ends")
    until(lambda: not helper.socket.exists(), "it listens no more")
    assert Path(f"/proc/{pid}").exists()
    assert helper.locked()
    helper.ended()
    assert not helper.locked()


def test_it_ends_when_no_worker_ever_comes(start: Start) -> None:
    """After ten seconds, and removes its socket."""
    begun = time.monotonic()
    helper = start(environment=NOWHERE)
    assert helper.ended()["code"] == 0
    assert 10 <= time.monotonic() - begun < 18
    assert "no worker for 10 s" in helper.log()
    assert not helper.socket.exists()


def test_it_stays_while_a_worker_is_there(start: Start) -> None:
    """The time counts from when the last one left; who only connects is no worker."""
    helper = start(environment=NOWHERE, idle_s=1.0)
    worker = helper.work()
    until(lambda: "worker" in helper.log(), "it knows the worker")
    with helper.connect():
        begun = time.monotonic()
        until(lambda: time.monotonic() - begun > 2.5, "longer than it waits")
        assert helper.pid()
        worker.close()
        assert helper.ended()["code"] == 0
    assert "no worker for 1 s" in helper.log()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT"])
def test_signals_end_it_in_order(start: Start, name: str) -> None:
    """Each of those that ask for an end: exit code 0, though the worker had it blocked or ignored."""
    helper = start(environment=NOWHERE)
    until(lambda: "serving" in helper.log(), "it serves")
    helper.signal(signal.Signals[name])
    assert helper.ended()["code"] == 0
    assert "ending: asked to" in helper.log()


def test_an_unreachable_collector_holds_up_no_end(start: Start) -> None:
    """What is held is tried for some seconds and then lost, which the log says; the code is 0."""
    helper = start(environment=NOWHERE)
    worker = helper.work()
    until(lambda: "not reached" in helper.log(), "it tried")
    begun = time.monotonic()
    helper.signal()
    assert helper.ended()["code"] == 0
    assert time.monotonic() - begun < 10
    worker.close()
    assert "left unsent" in helper.log()


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, ["neither QUAYSCOPE_COLLECTOR nor QUAYSCOPE_PYROSCOPE is set"]),
        (
            {"QUAYSCOPE_COLLECTOR": "collector:4040"},
            ["QUAYSCOPE_COLLECTOR", "set QUAYSCOPE_COLLECTOR to http"],
        ),
        ({"QUAYSCOPE_PYROSCOPE": "https://u:hunter2@x"}, ["QUAYSCOPE_PYROSCOPE", "carries a user"]),
        ({"QUAYSCOPE_COLLECTOR": "http://10.0.0.1:4040"}, ["10.0.0.1", "QUAYSCOPE_INSECURE=on"]),
        ({**NOWHERE, "QUAYSCOPE_TOKEN_FILE": "none"}, ["/none cannot be read", "check QUAYSCOPE_TOKEN_FILE"]),
        (
            {"QUAYSCOPE_COLLECTOR": "https://x", "QUAYSCOPE_CERT_FILE": "/dev/null"},
            ["check QUAYSCOPE_CERT_FILE"],
        ),
    ],
)
def test_settings_that_make_no_sense_are_said(
    start: Start, environment: dict[str, str], said: list[str]
) -> None:
    """It ends with 0, and the log beside the socket names the variable and the next step."""
    helper = start(environment=environment)
    assert helper.ended()["code"] == 0
    assert all(text in helper.log() for text in said), helper.log()
    assert "hunter2" not in helper.log()
    assert not helper.socket.exists()
    assert helper.log_file.stat().st_mode & 0o777 == 0o600


def test_a_socket_that_is_taken_is_left_alone(start: Start, tmp_path: Path) -> None:
    """Where a sidecar listens the helper says so and ends with 0; the sidecar serves on."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sidecar:
        sidecar.bind(str(tmp_path / "agent.sock"))
        sidecar.listen(8)
        helper = start(environment=NOWHERE)
        assert helper.ended()["code"] == 0
        assert "another relay listens" in helper.log()
        with helper.connect():
            pass


def test_a_path_that_cannot_be_listened_on(start: Start, tmp_path: Path) -> None:
    """A file in the socket's place is kept, and the code is 0."""
    (tmp_path / "agent.sock").write_text("precious")
    helper = start(environment=NOWHERE)
    assert helper.ended()["code"] == 0
    assert "is no socket" in helper.log()
    assert (tmp_path / "agent.sock").read_text() == "precious"


@pytest.mark.parametrize("lock", ["", "none", "-1", "9999", "1" * 30])
def test_without_a_lock_it_serves_all_the_same(start: Start, lock: str) -> None:
    """A descriptor that is none is said, and the socket alone keeps a second one away."""
    helper = start(environment={**NOWHERE, "QUAYSCOPE_LOCK_FD": lock})
    helper.pid()
    assert "QUAYSCOPE_LOCK_FD is no open descriptor" in helper.log()
    helper.signal()
    assert helper.ended()["code"] == 0


@pytest.mark.parametrize(
    "before",
    [
        "program._serve = lambda settings: 1 / 0; ",
        "program._serve = lambda settings: exit(3); ",
        "program.detach = lambda lock: 1 / 0; ",
        "program.read = lambda environment: 1 / 0; ",
        "program._watch = lambda *_: exit(4); ",
        "program.Relay._tell_workers = lambda self: 1 / 0; ",
    ],
)
def test_no_fault_gives_another_code(start: Start, before: str) -> None:
    """Whatever raises, exits or ends a thread inside: nobody reaps a 3, a 4, or anything but 0."""
    helper = start(environment=NOWHERE, before=before)
    if "program.read" in before or "program.detach" in before:
        assert helper.spawn["code"] == 0
        return
    assert helper.ended()["code"] == 0
    assert "fault" in helper.log()


def plant_link(path: Path, target: Path) -> None:
    path.symlink_to(target)


def plant_file(path: Path, target: Path) -> None:
    path.write_text("an old log")
    path.chmod(0o666)


def plant_folder(path: Path, target: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("plant", [plant_link, plant_file, plant_folder])
def test_the_log_is_a_new_file_or_none(
    start: Start, tmp_path: Path, plant: Callable[[Path, Path], None]
) -> None:
    """What lies in its place is replaced, never written through; where it cannot be, nothing fails."""
    target = tmp_path / "target"
    target.write_text("precious")
    plant(tmp_path / "agent.sock.log", target)
    helper = start(environment=NOWHERE)
    helper.pid()
    helper.signal()
    assert helper.ended()["code"] == 0
    assert target.read_text() == "precious"
    if plant is not plant_folder:
        assert not helper.log_file.is_symlink()
        assert helper.log_file.stat().st_mode & 0o777 == 0o600
        assert "an old log" not in helper.log()
        assert "serving" in helper.log()


def test_its_memory_has_an_end(start: Start) -> None:
    """The system refuses it more than its bound, whatever peers send."""
    helper = start(environment=NOWHERE)
    lines = Path(f"/proc/{helper.pid()}/limits").read_text().splitlines()
    (limit,) = [line.split() for line in lines if line.startswith("Max data size")]
    assert limit[3] == str(512 << 20)
