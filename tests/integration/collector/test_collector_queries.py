"""Every question of docs/api.md, answered from profiles that were pushed."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from integration.collector.running_collector import SECOND, RunningCollector, cpu_profile
from quayscope.profile import BLOCK, PROCESS_CPU, Attributes, Frame, Profile
from quayscope.relay.otlp import Metric, NumberPoint, metric_request

CPU = "process_cpu"
ALL = 70_000_015
"""The sum of `cpu_profile(0)`."""


@pytest.fixture(scope="module")
def stored(shared: RunningCollector) -> RunningCollector:
    """Two services, two roles, two types, and one service that two samplers saw."""
    shared.push(cpu_profile(), "q1")
    shared.push(cpu_profile(role="registry"), "q2")
    shared.push(cpu_profile(service_name="quay-database", role="client backend", sampler="perf"), "q3")
    shared.push(cpu_profile(service_name="both", sampler="agent"), "q4")
    shared.push(cpu_profile(service_name="both", sampler="pyspy"), "q5")
    blocked = cpu_profile(service_name="quay-app")
    block = Profile(BLOCK, blocked.labels, blocked.start_ns, blocked.duration_ns)
    block.add((Frame("main", "app.py", 3, "python"),), Attributes(endpoint="GET /x"), (4, 123_456_789))
    shared.push(block, "q6")
    return shared


def test_types_lists_each_column_that_has_data(stored: RunningCollector) -> None:
    """CPU and block are there with all their columns, memory is not."""
    found = {row["id"]: row for row in stored.get("types")["types"]}
    assert set(found) == {*PROCESS_CPU.ids(), *BLOCK.ids()}
    row = found["block:delay:nanoseconds:contentions:count"]
    assert (row["name"], row["value"], row["unit"]) == ("block", "delay", "nanoseconds")
    assert stored.get("types", from_=10, to=20)["types"] == []


def test_labels_and_their_values(stored: RunningCollector) -> None:
    """Labels and attributes are listed, values narrowed by matchers of both sorts."""
    assert {"service_name", "role", "sampler", "endpoint", "pid", "trace_id"} <= set(
        stored.get("labels")["labels"]
    )
    values: Any = lambda name, *match: stored.get(f"labels/{name}/values", match=match)["values"]  # noqa: E731
    assert values("role", "service_name=quay-app") == ["registry", "web"]
    assert values("role", "service_name=quay-app", "endpoint=GET /x") == ["web"]
    assert values("endpoint", "role=registry") == ["GET /api/v1/repository", "GET /v2/_catalog"]
    assert values("phase") == ["browse", "pull"]
    assert values("pid", "phase=pull") == ["12"]
    assert values("span_id") == ["a" * 16]
    assert values("trace_id") == ["b" * 32]
    assert values("nosuch") == []


def test_series_has_totals_and_losses(stored: RunningCollector) -> None:
    """Each series has its profiles, first column, chosen column and losses."""
    rows = stored.get("series", type=CPU, match="service_name=quay-app")["series"]
    assert [row["labels"]["role"] for row in rows] == ["registry", "web"]
    for row in rows:
        assert (row["profiles"], row["samples"], row["total"]) == (1, 8, ALL)
        assert row["losses"] == {"lost": 1, "late": 2, "truncated": 0, "unproven": 0, "unattributed": 0}
        assert row["type"] == PROCESS_CPU.ids()[1]
    assert {row["type"] for row in stored.get("series")["series"]} == {PROCESS_CPU.ids()[1], BLOCK.ids()[1]}


def test_flamegraph_is_the_merged_tree(stored: RunningCollector) -> None:
    """Two series merge by function; every value, loss and sampler is accounted for."""
    answer = stored.get("flamegraph", type=CPU, match="service_name=quay-app")
    assert (answer["total"], answer["unit"], answer["samplers"]) == (2 * ALL, "nanoseconds", ["agent"])
    assert answer["losses"]["lost"] == 2
    assert answer["pruned"] == 0
    root = answer["root"]
    (main,) = root["children"]
    assert (main["name"], main["kind"], main["file"], main["line"]) == ("main", "python", "app.py", 3)
    assert (main["value"], main["self"]) == (2 * ALL, 10)
    (view,) = main["children"]
    assert [child["name"] for child in view["children"]] == ["select ? from tag", "main"]
    sql = view["children"][0]
    assert (sql["kind"], sql["value"], sql["self"]) == ("sql", 2 * 40_000_006, 2 * 30_000_007)
    assert sql["children"][0]["kind"] == "wait"


def test_flamegraph_folds_what_is_beyond_max_nodes(stored: RunningCollector) -> None:
    """Folded nodes keep their value under "(other)", and their number is told."""
    answer = stored.get("flamegraph", type=CPU, match="service_name=quay-app", max_nodes=3)
    view = answer["root"]["children"][0]["children"][0]
    assert answer["pruned"] == 3
    (other,) = view["children"]
    assert (other["name"], other["kind"]) == ("(other)", "root")
    assert other["value"] + view["self"] == view["value"]


@pytest.mark.parametrize(
    ("match", "total"),
    [
        (["endpoint=GET /v2/_catalog"], 20_000_002),
        (["endpoint!=GET /v2/_catalog"], 50_000_013),
        (["endpoint="], 5),
        (["run=r1", "phase=browse"], 50_000_008),
        (["pid=12"], 20_000_002),
        (["pid!=12"], 50_000_013),
        (["span_id=" + "a" * 16], 50_000_008),
        (["trace_id=" + "B" * 32], 50_000_008),
        (["trace_id!=" + "b" * 32], 20_000_007),
        (["trace_id="], 20_000_007),
        (["trace_id!="], 50_000_008),
        (["span_id=" + "c" * 16], 0),
        (["role!=web"], 0),
        (["role=nosuch"], 0),
        (["endpoint=nosuch"], 0),
        (["nosuch="], ALL),
    ],
)
def test_matchers_on_labels_and_attributes(stored: RunningCollector, match: list[str], total: int) -> None:
    """Equal and unequal, on every attribute and on labels, select exactly their samples."""
    answer = stored.get("flamegraph", type=CPU, match=["service_name=quay-app", "role=web", *match])
    assert answer["total"] == total == answer["root"]["value"]


def test_times_select_slots(stored: RunningCollector) -> None:
    """`from` is included and `to` is not, to the slot."""
    start = cpu_profile().start_ns / SECOND
    for begin, end, total in ((1, 2, 50_000_008), (2, 3, 20_000_002), (0, 1, 5), (1, 3, 70_000_010)):
        query = {"from_": start + begin, "to": start + end, "match": ["service_name=quay-app", "role=web"]}
        found = stored.get("flamegraph", type=CPU, **query)["total"]
        # The profiles may have been pushed in the window before this one.
        assert found in (total, 0)


def test_top_counts_a_recursive_function_once(stored: RunningCollector) -> None:
    """Rows come by falling self; the total of `main`, which calls itself, is the total of all."""
    answer = stored.get("top", type=CPU, match=["service_name=quay-app", "role=web"])
    assert answer["total"] == ALL
    rows = {row["function"]: row for row in answer["rows"]}
    assert [row["self"] for row in answer["rows"]] == sorted(
        (row["self"] for row in answer["rows"]), reverse=True
    )
    assert (rows["main"]["self"], rows["main"]["total"]) == (10_000_008, ALL)
    assert sum(row["self"] for row in answer["rows"]) == ALL
    only = stored.get("top", type=CPU, match=["service_name=quay-app"], kind="sql", limit=1)["rows"]
    assert [row["kind"] for row in only] == ["sql"]


def test_breakdown_by_labels_attributes_and_frames(stored: RunningCollector) -> None:
    """Dimensions of every sort; rows sum to the total, the first column is told beside."""
    query = {"type": CPU, "match": ["service_name=quay-app", "role=web"]}
    answer = stored.get("breakdown", by="endpoint,sql,wait", **query)
    rows = {
        (row["endpoint"], row["sql"], row["wait"]): (row["value"], row["samples"]) for row in answer["rows"]
    }
    assert rows == {
        ("GET /api/v1/repository", "select ? from tag", ""): (30_000_007, 3),
        ("GET /api/v1/repository", "", ""): (20_000_001, 2),
        ("GET /v2/_catalog", "", ""): (10_000_003, 1),
        ("GET /v2/_catalog", "select ? from tag", "Lock:transactionid"): (9_999_999, 1),
        ("", "", ""): (5, 1),
    }
    by_trace = stored.get("breakdown", by="trace_id,role", **query)["rows"]
    assert {(row["trace_id"], row["role"]): row["value"] for row in by_trace} == {
        ("b" * 32, "web"): 50_000_008,
        ("", "web"): 20_000_007,
    }


def test_two_samplers_are_never_summed(stored: RunningCollector) -> None:
    """Two samplers of one service are 409 with the choices; one chosen, or split, it answers."""
    for path, extra in (("flamegraph", {}), ("top", {}), ("breakdown", {"by": "endpoint"})):
        answer = stored.get(path, 409, type=CPU, match="service_name=both", **extra)
        assert answer["samplers"] == ["agent", "pyspy"]
        assert "match=sampler=agent" in answer["next_step"]
        assert stored.get(path, type=CPU, match=["service_name=both", "sampler=agent"], **extra)
    split = stored.get("breakdown", type=CPU, match="service_name=both", by="sampler")["rows"]
    assert {row["sampler"]: row["value"] for row in split} == {"agent": ALL, "pyspy": ALL}
    # Different samplers of different services saw different processes.
    both = ["service_name!=both"]
    assert stored.get("flamegraph", type=CPU, match=both)["samplers"] == ["agent", "perf"]


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("flamegraph", {}),
        ("flamegraph", {"type": "nosuch"}),
        ("flamegraph", {"type": "process_cpu:x:y:z:w"}),
        ("flamegraph", {"type": CPU, "from": "x"}),
        ("flamegraph", {"type": CPU, "from": "nan"}),
        ("flamegraph", {"type": CPU, "from": "20", "to": "10"}),
        ("flamegraph", {"type": CPU, "max_nodes": "0"}),
        ("flamegraph", {"type": CPU, "match": "nonsense"}),
        ("flamegraph", {"type": CPU, "match": "pid=x"}),
        ("flamegraph", {"type": CPU, "match": "span_id=12"}),
        ("flamegraph", {"type": CPU, "match": ["a=b"] * 51}),
        ("top", {"type": CPU, "kind": "nosuch"}),
        ("top", {"type": CPU, "limit": "-1"}),
        ("breakdown", {"type": CPU}),
        ("breakdown", {"type": CPU, "by": "a,a"}),
        ("breakdown", {"type": CPU, "by": "value"}),
        ("breakdown", {"type": CPU, "by": "a; drop table samples"}),
        ("spans", {"trace_id": "xyz"}),
        ("metrics", {}),
        ("labels/x/values", {"match": "="}),
    ],
)
def test_senseless_questions_get_a_clear_400(
    stored: RunningCollector, path: str, query: dict[str, Any]
) -> None:
    """Each is refused with a message in the API's shape, and nothing breaks."""
    answer = stored.get(path, 400, **query)
    assert answer["error"]
    assert "next_step" in answer
    assert stored.get("status")["faults"] == 0


def test_unknown_paths_and_methods(stored: RunningCollector) -> None:
    """404 and 405 are JSON too."""
    assert "error" in stored.get("nosuch", 404)
    status, _, _ = stored.request("DELETE", "/api/v1/types")
    assert status == 405


def test_stacks_deeper_than_json_recursion_are_answered(stored: RunningCollector) -> None:
    """A stack of 2,000 frames is cut to the limit, counted, and drawn."""
    profile = Profile(
        PROCESS_CPU, {"service_name": "deep", "sampler": "agent"}, time.time_ns() - SECOND, SECOND
    )
    profile.add(tuple(Frame(f"f{i}", "deep.py", i, "python") for i in range(2000)), Attributes(), (1, 7))
    stored.push(profile, "deep")
    answer = stored.get("flamegraph", type=CPU, match="service_name=deep")
    assert answer["losses"]["truncated"] == 1
    depth, node = 0, answer["root"]
    while node["children"]:
        depth, node = depth + 1, node["children"][0]
    assert (depth, node["name"], node["value"]) == (400, "f1999", 7)


def test_odd_text_is_kept_or_bounded(stored: RunningCollector) -> None:
    """NUL, markup, quotes and very long names do not break the store or the answer."""
    profile = Profile(
        PROCESS_CPU, {"service_name": "odd", "sampler": "agent"}, time.time_ns() - SECOND, SECOND
    )
    names = ["\0zero", "<script>'\"", "ü" * 20_000, "\N{PILE OF POO}", ""]
    for number, name in enumerate(names):
        profile.add((Frame(name or "x", name, 2**40, "native"),), Attributes(endpoint=name), (1, number + 1))
    stored.push(profile, "odd")
    rows = stored.get("top", type=CPU, match="service_name=odd")["rows"]
    found = {row["function"] for row in rows}
    assert {"\0zero", "<script>'\"", "\N{PILE OF POO}"} <= found
    assert max(map(len, found)) == 16_384


def test_queries_answer_during_ingest(stored: RunningCollector) -> None:
    """Four writers and three readers at once: no error, and every acknowledged profile in the end."""
    failures: list[str] = []
    pushed: list[int] = []
    stop = threading.Event()

    def write(worker: int) -> None:
        for number in range(15):
            profile = cpu_profile(seed=worker * 100 + number, service_name="busy")
            stored.push(profile, f"busy-{worker}-{number}")
            pushed.append(profile.totals()[1])

    def read() -> None:
        while not stop.is_set():
            for path, query in (("flamegraph", {}), ("breakdown", {"by": "endpoint,sql"}), ("series", {})):
                try:
                    stored.get(path, type=CPU, match="service_name=busy", **query)
                except AssertionError as error:
                    failures.append(str(error))

    readers = [threading.Thread(target=read) for _ in range(3)]
    writers = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in [*readers, *writers]:
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    for thread in readers:
        thread.join()
    assert not failures
    assert len(pushed) == 60
    assert stored.get("flamegraph", type=CPU, match="service_name=busy")["total"] == sum(pushed)


def test_an_endpoint_through_all_tiers(shared: RunningCollector) -> None:
    """A worker's CPU and waits, and below the statement the database's own, of this endpoint alone."""
    where = Attributes(endpoint="GET /stitched", run="r9")
    sql, view = Frame("select s", kind="sql"), Frame("view", "app.py", 7, "python")
    root = Frame("quay-database", kind="root")

    def push(kind: Any, labels: dict[str, str], stacks: dict[tuple[Frame, ...], int], number: str) -> None:
        base = cpu_profile(0, **labels)
        profile = Profile(kind, base.labels, base.start_ns, base.duration_ns)
        for stack, value in stacks.items():
            profile.add(stack, where, (1, value))
            profile.add(stack, where._replace(endpoint="GET /other"), (1, 10 * value))
        shared.push(profile, number)

    database = {"service_name": "quay-database", "role": "client backend"}
    push(PROCESS_CPU, {}, {(view,): 500}, "s1")
    push(BLOCK, {}, {(view, sql): 2_000}, "s2")
    push(
        PROCESS_CPU,
        {**database, "sampler": "perf"},
        {(root, sql, Frame("ExecScan", kind="native")): 700},
        "s3",
    )
    push(PROCESS_CPU, {**database, "sampler": "activity"}, {(root, sql): 9_000}, "s4")
    push(BLOCK, {**database, "sampler": "activity"}, {(root, sql, Frame("IO:Read", kind="wait")): 300}, "s5")
    answer = shared.get("stitch", match=["endpoint=GET /stitched", "run=r9"])
    assert (answer["cpu"], answer["stalled"], answer["total"]) == (500, 2_000, 2_500)
    assert answer["tiers"]["database_cpu"]["samplers"] == ["perf"]
    assert answer["statements"] == [
        {"statement": "select s", "stalled": 2_000, "cpu": 700, "waiting": 300, "shown": 1_000}
    ]
    (first,) = answer["root"]["children"]
    assert answer["root"]["name"] == "GET /stitched"
    assert (first["name"], first["value"], first["self"]) == ("view", 2_500, 500)
    (statement,) = first["children"]
    assert (statement["value"], statement["self"]) == (2_000, 1_000)
    assert [(child["name"], child["value"]) for child in statement["children"]] == [
        ("ExecScan", 700),
        ("IO:Read", 300),
    ]
    assert shared.request("GET", "/api/v1/stitch?match=run=r9")[0] == 400


def test_counters_grow_by_what_they_counted(shared: RunningCollector) -> None:
    """Growth starts at the last point before the range, or anew with a counter; gauges have none."""
    now = int(time.time()) - 100

    def push(name: str, kind: str, points: dict[int, float], **attributes: str) -> None:
        for second, value in points.items():
            at = (now + second) * SECOND
            body = metric_request({}, [Metric(name, "1", kind, (NumberPoint(value, at, at, attributes),))])
            assert shared.post("/v1/metrics", body, "application/x-protobuf")[0] == 200

    push("grow.scans", "cumulative", {0: 5, 10: 9, 20: 12, 30: 2, 40: 4}, table="a")
    push("grow.scans", "cumulative", {20: 7, 30: 8}, table="new")
    push("grow.scans", "cumulative", {0: 7, 10: 7, 40: 7}, table="still")
    push("grow.reads", "delta", {5: 100, 15: 1, 25: 2}, table="a")
    push("grow.size", "gauge", {5: 1, 15: 2}, table="a")
    rows = shared.get("deltas", name="grow.*", from_=now + 15, to=now + 41)["rows"]
    assert [(row["name"], row["table"], row["value"]) for row in rows] == [
        ("grow.reads", "a", 3),
        ("grow.scans", "a", 3 + 2 + 2),
        ("grow.scans", "new", 1),
    ]
    assert shared.get("deltas", name="grow.scans", from_=now + 15, to=now + 41, match="table=new")[
        "rows"
    ] == [rows[2]]
    assert shared.request("GET", "/api/v1/deltas")[0] == 400


def test_bursts_have_their_statements_and_backends(shared: RunningCollector) -> None:
    """A counter that grows fast each minute stands out, and with it the statement that runs then."""
    start = (int(time.time()) // 60 - 6) * 60
    total = 0.0
    points = []
    for second in range(300):
        total += 3000 if second % 60 < 8 else 100
        at = (start + second) * SECOND
        points.append(NumberPoint(total, at, start * SECOND, {"device": "sdb"}))
    body = metric_request({}, [Metric("burst.operations", "1", "cumulative", tuple(points))])
    assert shared.post("/v1/metrics", body, "application/x-protobuf")[0] == 200
    labels = {"service_name": "quay-database", "role": "client backend", "sampler": "sessions"}
    for minute in range(5):
        at = (start + 60 * minute) * SECOND
        profile = Profile(BLOCK, labels, at, 60 * SECOND)
        for second in range(60):
            slot = at + second * SECOND
            name, pid = ("burst vacuum", 7) if second % 60 < 8 else ("calm select", 9)
            where = Attributes(slot, "GET /burst", pid=pid)
            profile.add((Frame(name, kind="sql"), Frame("IO:DataFileRead", kind="wait")), where, (1, SECOND))
        shared.push(profile, f"burst{minute}")
    answer = shared.get("bursts", name="burst.operations", from_=start, to=start + 300)
    assert (answer["period_s"], answer["periodic"]) == (60, True)
    assert 4 <= len(answer["bursts"]) <= 5
    first = answer["statements"][0]
    assert (first["statement"], first["endpoints"]) == ("burst vacuum", ["GET /burst"])
    assert first["in_bursts"] > 25 * SECOND
    assert first["in_bursts"] > 5 * answer["statements"][1]["in_bursts"]
    assert (answer["backends"][0]["pid"], answer["backends"][0]["role"]) == (7, "client backend")
    assert shared.request("GET", "/api/v1/bursts?name=burst.*")[0] == 400
    assert shared.request("GET", "/api/v1/bursts?name=burst.none")[0] == 400
