"""Profile now, on real workers and a real Postgres: one merged profile, together, soon, and true."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from typing import Any

import pytest

from integration.collector.running_collector import RunningCollector, wait_for
from integration.control.conftest import Stack
from integration.control.pods import begin, wait_over
from quayscope.profile import Profile, pprof

SECONDS = 3


def result(collector: RunningCollector, name: str, **query: str) -> Profile:
    """A capture's result, decoded."""
    text = "&".join(f"{key}={value}" for key, value in query.items())
    status, body, _ = collector.request("GET", f"/api/v1/captures/{name}/result?{text}")
    assert status == 200, body
    return pprof.decode(body)


def totals(shown: dict[str, Any], kind: str) -> list[int]:
    """The sums of all parts of one type."""
    parts = [one["totals"] for part in shown["parts"] for one in part["profiles"] if one["type"] == kind]
    return [sum(column) for column in zip(*parts, strict=True)]


@pytest.mark.alone
def test_one_merged_profile_of_workers_and_database(stack: Stack, full: bool) -> None:
    """Soon after the end, begun together, and its totals are those of its parts."""
    seconds = 10 if full else SECONDS
    called = time.time()
    status, answer, headers = begin(stack.collector, selector={}, seconds=seconds, rate=99)
    assert status == 202, answer
    assert headers["location"] == f"/api/v1/captures/{answer['id']}"
    shown = wait_over(stack.collector, answer["id"])
    print({"after the call": shown["seen_over"] - called, "after the end": shown["seen_over"] - shown["end"]})
    print({"skew": shown["start_skew"], "parts": shown["parts"]})
    assert (shown["state"], shown["failed"]) == ("done", [])
    # It begins on a whole second, at most 1.2 s after the call.
    assert shown["seen_over"] - called <= seconds + (2.0 if full else 3.2)
    assert shown["seen_over"] - shown["end"] <= 2.0
    assert shown["start_skew"] <= 0.05
    assert sorted((part["pod"], part["kind"]) for part in shown["parts"]) == [
        ("database-0", "postgres"),
        ("registry-0", "python"),
        ("registry-0", "python"),
    ]
    workers = set(stack.gunicorn.workers())
    assert {part["pid"] for part in shown["parts"]} == workers | {stack.postmaster}
    merged = result(stack.collector, answer["id"])
    assert list(merged.totals()) == shown["types"]["process_cpu"] == totals(shown, "process_cpu")
    waits = result(stack.collector, answer["id"], type="block")
    assert list(waits.totals()) == shown["types"]["block"] == totals(shown, "block")
    for pod, name in (("database-0", "quay-database"), ("registry-0", "quay-app")):
        own = result(stack.collector, answer["id"], pod=pod)
        assert own.totals()[1] > 0
        assert {stack_[0].function for stack_, _ in own.samples} == {name}
    # Samples lie in the window, to a second's slot of the database's.
    slots = [about.slot_ns / 1e9 for _, about in merged.samples]
    assert shown["start"] - 0.99 <= min(slots) <= max(slots) < shown["end"]
    frames = {(frame.function, frame.kind) for stack_, _ in merged.samples for frame in stack_}
    assert ("burn", "python") in frames
    assert any(kind == "sql" for _, kind in frames)
    assert any(frame.kind == "wait" for stack_, _ in waits.samples for frame in stack_)


def test_an_endpoint_is_selected(stack: Stack) -> None:
    """Only samples of the endpoint asked for, and only of the role asked for."""
    _, answer, _ = begin(
        stack.collector,
        selector={"pod": "registry-0", "role": "registry", "endpoint": "GET /heavy/<name>"},
        seconds=1,
        rate=250,
        kinds=["python"],
    )
    shown = wait_over(stack.collector, answer["id"])
    assert shown["state"] == "done", shown
    found = result(stack.collector, answer["id"])
    assert {about.endpoint for _, about in found.samples} == {"GET /heavy/<name>"}
    status, answer, _ = begin(stack.collector, selector={"pod": "registry-0", "role": "mirror"}, seconds=1)
    assert (status, "next_step" in answer) == (404, True)


def test_a_worker_that_dies_leaves_what_it_had(stack: Stack) -> None:
    """The result is there, the one that died is named, and so is what was seen of it."""
    _, answer, _ = begin(stack.collector, selector={"pod": "registry-0"}, seconds=SECONDS)
    victim = stack.gunicorn.workers()[0]
    time.sleep(max(0.0, answer["start"] + 1.7 - time.time()))
    os.kill(victim, signal.SIGKILL)
    shown = wait_over(stack.collector, answer["id"])
    assert shown["state"] == "done"
    assert [(one["pod"], one["pid"]) for one in shown["failed"]] == [("registry-0", victim)]
    assert f"process {victim} ended" in shown["failed"][0]["error"]
    states = {part["pid"]: part["state"] for part in shown["parts"]}
    assert states.pop(victim) == "partial"
    assert set(states.values()) == {"done"}
    cut = [
        about.slot_ns / 1e9
        for _, about in result(stack.collector, answer["id"]).samples
        if about.pid == victim
    ]
    assert shown["start"] - 0.01 <= min(cut) <= max(cut) <= shown["start"] + 1.8


def test_twenty_callers_at_once(stack: Stack) -> None:
    """Eight captures run, the others hear when to come again; captures of one target share its sampler."""
    answers: list[tuple[int, dict[str, Any], dict[str, str]]] = []
    lock = threading.Lock()

    def call() -> None:
        # Longer than twenty answers take on any machine: all that are taken run at once.
        answer = begin(stack.collector, selector={"pod": "database-0"}, seconds=60)
        with lock:
            answers.append(answer)

    threads = [threading.Thread(target=call) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    taken = [answer for status, answer, _ in answers if status == 202]
    refused = [(answer, headers) for status, answer, headers in answers if status == 429]
    early = [stack.collector.get(f"captures/{one['id']}") for one in taken]
    assert (len(taken), len(refused)) == (8, 12), [(one["state"], one["failed"]) for one in early]
    for answer, headers in refused:
        assert 40 <= int(headers["retry-after"]) <= 64
        assert answer["next_step"].startswith("come again in")
    last = max(one["start"] for one in taken)
    time.sleep(max(0.0, last + 4.0 - time.time()))
    for one in taken:
        assert stack.collector.request("DELETE", f"/api/v1/captures/{one['id']}")[0] == 204
    shown = [wait_over(stack.collector, one["id"]) for one in taken]
    assert {one["state"] for one in shown} == {"cancelled"}, [one["failed"] for one in shown]
    # Those that began in one second saw the same samples, up to when they were cancelled.
    cpu: dict[float, list[int]] = {}
    for one in shown:
        cpu.setdefault(one["start"], []).append(one["types"].get("process_cpu", (0, 0))[1])
    for sums in cpu.values():
        assert min(sums) > 0
        assert max(sums) - min(sums) <= 0.5 * max(sums), cpu
    # What was refused can be had now.
    _, answer, _ = begin(stack.collector, selector={"pod": "database-0"}, seconds=1)
    assert wait_over(stack.collector, answer["id"])["state"] == "done"


def test_a_capture_is_cancelled(stack: Stack) -> None:
    """It ends at once, with what it had, and says who did it."""
    _, answer, _ = begin(stack.collector, selector={"pod": "registry-0"}, seconds=60)
    time.sleep(max(0.0, answer["start"] + 0.6 - time.time()))
    status, _, _ = stack.collector.request("DELETE", f"/api/v1/captures/{answer['id']}")
    assert status == 204
    shown = wait_over(stack.collector, answer["id"])
    assert (shown["state"], shown["cancelled_by"]) == ("cancelled", "anybody")
    assert shown["seen_over"] < answer["start"] + 10
    assert {part["error"] for part in shown["parts"]} == {"cancelled"}
    assert stack.collector.request("DELETE", f"/api/v1/captures/{answer['id']}")[0] == 204
    assert stack.collector.request("DELETE", "/api/v1/captures/20260101T000000-00000000")[0] == 404


def test_workers_are_told_a_rate(stack: Stack) -> None:
    """All workers of the pods that match, for a while; numbers out of range are refused."""
    asked = {"selector": {"pod": "registry-0"}, "rate": 50, "seconds": 2}
    status, body, _ = stack.collector.request("POST", "/api/v1/sampling", json.dumps(asked).encode())
    assert (status, json.loads(body)) == (202, {"pods": ["registry-0"]})
    wait_for(lambda: "what=SetRate" in stack.registry.log())
    rates: list[Any] = [
        {"rate": 5000},
        {"on": "no"},
        {"hz": 5},
        {"selector": {"pid": "x"}},
        [],
        {"seconds": 0.5},
    ]
    for wrong in rates:
        status, body, _ = stack.collector.request("POST", "/api/v1/sampling", json.dumps(wrong).encode())
        assert (status, "error" in json.loads(body)) == (400, True)
    captures: list[dict[str, Any]] = [
        {"kinds": ["ruby"]},
        {"kinds": []},
        {"seconds": 601},
        {"rate": 0},
        {"x": 1},
    ]
    for wrong in [*captures, {"selector": 3}]:
        assert begin(stack.collector, **wrong)[0] == 400


def test_a_sidecar_tells_its_clock(stack: Stack) -> None:
    """With what it pushes; on one machine the offset is within its error, and nothing is moved."""

    def told() -> bool:
        found = stack.collector.get("series", type="process_cpu")["series"]
        ours = [row for row in found if row["labels"].get("pod") in ("registry-0", "database-0")]
        return len({row["labels"]["pod"] for row in ours}) == 2 and all(
            row["clock"]["unknown"] < row["profiles"]
            and abs(row["clock"]["offset"]) <= row["clock"]["error"] < 0.5
            for row in ours
        )

    wait_for(told, 20)


def test_every_format(stack: Stack) -> None:
    """The files hold the frames, and the self-contained one refers to nothing else."""
    _, answer, _ = begin(stack.collector, selector={"pod": "database-0"}, seconds=1)
    wait_over(stack.collector, answer["id"])
    for name, word in (
        ("folded", b"quay-database;"),
        ("speedscope", b'"$schema":"https://www.speedscope.app/file-format-schema.json"'),
        ("svg", b"<svg "),
        ("html", b"Content-Security-Policy"),
    ):
        path = f"/api/v1/captures/{answer['id']}/result?format={name}"
        status, body, headers = stack.collector.request("GET", path)
        assert status == 200, body
        assert word in body
        assert b"quay-database" in body
        assert headers["content-disposition"].startswith("attachment; filename=")
        assert b'src="http' not in body
        assert b'href="http' not in body
    assert stack.collector.request("GET", f"/api/v1/captures/{answer['id']}/result?format=pdf")[0] == 400
    assert stack.collector.request("GET", f"/api/v1/captures/{answer['id']}/result?type=mutex")[0] == 404
    assert answer["id"] in [one["id"] for one in stack.collector.get("captures")["captures"]]


def test_what_a_go_program_would_serve(stack: Stack) -> None:
    """An index, what sessions waited for, and 404 for what there is not."""
    status, body, _ = stack.collector.request("GET", "/targets/database-0/debug/pprof/")
    assert status == 200
    assert b"profile?seconds=30" in body
    status, body, _ = stack.collector.request("GET", "/targets/database-0/debug/pprof/block?seconds=1")
    assert status == 200
    assert any(frame.kind == "wait" for stack_, _ in pprof.decode(body).samples for frame in stack_)
    for path, expected in (("nobody/debug/pprof/profile", 404), ("database-0/debug/pprof/trace", 404)):
        assert stack.collector.request("GET", f"/targets/{path}")[0] == expected
