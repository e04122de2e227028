"""Joining the tiers' figures into one report."""

from __future__ import annotations

from typing import Any

import pytest

from quayscope.load.demo.report import Observed, build, heaviest_line, share_overlap

Node = dict[str, Any]


def node(name: str, self_value: int = 0, children: tuple[Node, ...] = (), **more: Any) -> Node:
    """One node of a merged tree."""
    plain = {"name": name, "kind": "python", "file": "", "line": 0, "self": self_value}
    return {**plain, "children": children, **more}


def test_shares_that_divide_alike_overlap_fully() -> None:
    """Absolute size does not matter, only how it is divided."""
    assert share_overlap({"a": 1.0, "b": 3.0}, {"a": 10.0, "b": 30.0}) == pytest.approx(1.0)


def test_shares_on_different_keys_do_not_overlap() -> None:
    """What one side never saw counts for nothing."""
    assert share_overlap({"a": 1.0}, {"b": 1.0}) == 0.0
    assert share_overlap({}, {"b": 1.0}) == 0.0


def test_a_librarys_time_belongs_to_the_application_line_that_called_it() -> None:
    """The frame nearest the leaf inside the application's directory owns what is below it."""
    tree = node(
        "total",
        kind="root",
        children=(
            node(
                "handler",
                self_value=5,
                file="/app/views.py",
                line=10,
                children=(node("dumps", 50, file="/lib/json.py", line=3),),
            ),
            node("other", 20, file="/app/views.py", line=99),
        ),
    )
    assert heaviest_line(tree, "/app") == "views.py:10 handler"


def test_a_tree_without_application_frames_names_what_there_is() -> None:
    """Outside the application the first Python frame stands in; an empty tree gives nothing."""
    library = node("run", 3, file="/lib/x.py", line=1)
    assert heaviest_line(node("total", kind="root", children=(library,)), "/app") == "x.py:1 run"
    assert heaviest_line(node("total", kind="root"), "/app") == ""


def test_a_report_without_collector_keeps_what_the_driver_saw() -> None:
    """Latencies and the application's own account stay when the collector is gone."""
    observed = Observed(
        start=0.0,
        end=10.0,
        load={"endpoints": [{"endpoint": "GET /a", "p99_ms": 12.0}]},
        worker_cpu_s={},
        truth_cpu_s={"GET /a": 1.5},
        application="/app",
        database_service="quay-database",
        failures=[{"part": "collector", "what": "was ended by SIGKILL", "log": []}],
    )
    report = build(None, observed)
    assert report["endpoints"][0]["p99_ms"] == 12.0
    assert report["endpoints"][0]["truth_cpu_s"] == 1.5
    assert report["failures"][0]["part"] == "collector"
