"""Captures without their sidecars: what is kept on disk, and parts put together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from quayscope.collector.control import kept as kept_module
from quayscope.collector.control.captures import Captures
from quayscope.collector.control.hub import Hub
from quayscope.collector.control.kept import KeptCaptures
from quayscope.collector.control.merging import merge_all, read_part
from quayscope.collector.control.request import ALL, CaptureRequest, read_rate, read_request
from quayscope.collector.counters import Counters
from quayscope.collector.errors import BadRequest, NoTarget
from quayscope.profile import BLOCK, PROCESS_CPU, Attributes, Frame, Losses, Profile, pprof
from quayscope.profile.control import (
    Answer,
    Heartbeat,
    Part,
    Register,
    SetRate,
    Target,
    encode_from_sidecar,
)

TARGET = Target(7, "python", {"service_name": "quay-app", "pod": "p", "role": "web"})


def cpu(labels: dict[str, str], start_ns: int, value: int) -> Profile:
    profile = Profile(PROCESS_CPU, labels, start_ns, 10**9, 10_000_000, losses=Losses(lost=1))
    profile.add((Frame("main"),), Attributes(start_ns, "GET /x", pid=7), (1, value))
    return profile


def test_a_part_is_moved_to_the_collectors_clock() -> None:
    """Its start and its slots; samples that fall together are one."""
    one = cpu({}, 5 * 10**9, 3)
    part = Part(
        "c", 0, TARGET, "python", "", 1, 2, -(10**9), (pprof.encode(one),), ("process_cpu",), ("agent",)
    )
    ((pod, profile),), wrong = read_part("p", part)
    assert (pod, wrong, profile.start_ns) == ("p", "", 4 * 10**9)
    assert profile.labels == {**TARGET.labels, "sampler": "agent"}
    assert [about.slot_ns for _, about in profile.samples] == [4 * 10**9]
    assert read_part("p", part._replace(profiles=(b"x",)))[1].startswith("a profile of it cannot be read")
    assert read_part("p", part._replace(profiles=()))[1] == "its profiles and their types are not as many"


def test_merged_is_the_sum_of_all() -> None:
    """By type, under each service's root frame; labels that differ are left out, losses add up."""
    quay, database = {"service_name": "quay-app", "pod": "a"}, {"service_name": "quay-database", "pod": "a"}
    rooted = Profile(BLOCK, database, 1, 1)
    rooted.add((Frame("quay-database", kind="root"), Frame("Lock:tuple", kind="wait")), Attributes(), (1, 5))
    merged = merge_all([cpu(quay, 10**9, 3), cpu(database, 3 * 10**9, 4), rooted])
    assert merged["process_cpu"].totals() == (2, 7)
    assert merged["process_cpu"].labels == {"pod": "a"}
    assert merged["process_cpu"].losses.lost == 2
    assert (merged["process_cpu"].start_ns, merged["process_cpu"].duration_ns) == (10**9, 3 * 10**9)
    assert {stack[0].function for stack, _ in merged["process_cpu"].samples} == {"quay-app", "quay-database"}
    assert [len(stack) for stack, _ in merged["block"].samples] == [2]
    assert merge_all([]) == {}


def test_results_are_bounded_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest go first; half-written ones are gone at the next start; names lead nowhere else."""
    monkeypatch.setattr(kept_module, "MOST_CAPTURES", 3)
    kept = KeptCaptures(tmp_path / "captures")
    names = [f"2026010{day}T000000-0000000{day}" for day in range(1, 6)]
    for name in names:
        kept.write(name, {"id": name}, {"process_cpu.pprof": b"x" * 1000})
    assert kept.ids() == names[:1:-1]
    assert kept.about(names[0]) is None
    assert kept.profile(names[4], "process_cpu.pprof") == b"x" * 1000
    (tmp_path / "secret").write_bytes(b"s")
    for name, file in (
        (names[4], "../../secret"),
        ("..", "secret"),
        (names[4], ".hidden"),
        (names[4], "none"),
    ):
        assert kept.profile(name, file) is None
    (tmp_path / "captures" / ".20260109T000000-00000009").mkdir()
    monkeypatch.setattr(kept_module, "MOST_BYTES", 1500)
    again = KeptCaptures(tmp_path / "captures")
    assert again.ids() == kept.ids()
    again.write("20260107T000000-00000007", {}, {"a": b"y" * 2000})
    assert again.ids() == ["20260107T000000-00000007"]
    assert [path.name for path in (tmp_path / "captures").iterdir()] == again.ids()


def test_a_request_is_read() -> None:
    """Short names stand for labels, `all` for kinds in order; what makes no sense is named."""
    asked = read_request(
        {"selector": {"service": "x", "pid": 7, "endpoint": "GET /x", "role": "web"}, "kinds": ["go", "all"]}
    )
    assert asked == CaptureRequest(
        {"service_name": "x", "role": "web"}, (7,), "GET /x", 10, 99, ("go", "python", "postgres", "native")
    )
    assert read_request({}) == CaptureRequest({}, kinds=ALL)
    assert read_request({"selector": {"component": "postgres"}}).labels == {"service_name": "quay-database"}
    assert read_request({"selector": {"pid": [7, 8]}}).selects(TARGET)
    assert not read_request({"selector": {"pid": 8}}).selects(TARGET)
    assert not read_request({"selector": {"role": ""}}).selects(TARGET)
    assert read_rate({"on": False, "seconds": 60})[1] == SetRate(0, True, 60)
    wrong: list[Any] = [
        3, {"selector": []}, {"selector": {"pod": 3}}, {"selector": {"pid": True}}, {"selector": {"pid": []}},
        {"seconds": 1.5}, {"seconds": float("nan")}, {"rate": "9"}, {"kinds": [3]}, {"kind": "go"},
    ]  # fmt: skip
    for document in wrong:
        with pytest.raises(BadRequest):
            read_request(document)


def test_a_sidecar_that_is_gone_is_waited_for_and_named(tmp_path: Path) -> None:
    """It may come back with what it has; then the capture ends without it, by the collector's clock."""
    now = [10**18]
    counters = Counters()
    hub = Hub("1", counters, lambda: now[0])
    captures = Captures(hub, KeptCaptures(tmp_path), counters)
    with pytest.raises(NoTarget, match="no process"):
        captures.begin(CaptureRequest({}), "somebody")
    session = hub.attach(encode_from_sidecar(Register("i", "1", {"pod": "p"}, (TARGET,))))
    hub.heard(session, encode_from_sidecar(Heartbeat(1, -5, 7)))
    assert (session.offset_ns, session.round_trip_ns) == (-5, 7)
    capture = captures.begin(CaptureRequest({"role": "web"}, seconds=1), "somebody")
    assert (capture.start_ns % 10**9, capture.start_ns > now[0]) == (0, True)
    part = Part(capture.name, 0, TARGET, "python")
    captures.answered(session, Answer(capture.name, "accepted", "", (part,)))
    hub.detach(session)
    now[0] = capture.end_ns + 2 * 10**9
    assert not captures._is_over(capture)
    now[0] = capture.end_ns + 4 * 10**9
    assert captures._is_over(capture)
    captures._finish(capture)
    shown = captures.shown(capture.name)
    assert shown is not None
    assert shown["state"] == "failed"
    assert shown["failed"] == [{"pod": "p", "pid": 7, "error": "the sidecar is gone"}]
    assert captures.active(capture.name) is None
