"""The questions over HTTP, as docs/api.md lists them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import duckdb
from flask import Blueprint, Response, jsonify, request
from werkzeug.exceptions import HTTPException

from quayscope.collector.counters import Counters
from quayscope.collector.errors import BadRequest, CollectorError, SamplersMixed
from quayscope.collector.query import catalogue
from quayscope.collector.query.breakdown import breakdown, read_dimensions
from quayscope.collector.query.bursts import bursts
from quayscope.collector.query.metrics import deltas, metrics, one_metric
from quayscope.collector.query.request import read_column, read_count, read_matchers, read_range
from quayscope.collector.query.select import losses, present_series, samplers_of, select, sums_by_node
from quayscope.collector.query.spans import newest_spans, spans_of_trace
from quayscope.collector.query.tiers import all_tiers
from quayscope.collector.query.top import top_rows
from quayscope.collector.query.tree import dump_tree, flame_tree, fold, merge
from quayscope.collector.store import Store
from quayscope.profile import KINDS

__all__ = ["query_blueprint"]

_MAX_NODES, _MOST_NODES = 8192, 200_000
_TOP_ROWS, _MOST_TOP_ROWS = 100, 10_000
_SPANS, _MOST_SPANS = 100, 10_000


def query_blueprint(
    store: Store, counters: Counters, version: str, forward_queue: Callable[[], int] = lambda: 0
) -> Blueprint:
    """Return the blueprint; its errors are `{"error", "next_step"}`."""
    paths = Blueprint("query", __name__, url_prefix="/api/v1")
    started = time.time()

    @paths.errorhandler(CollectorError)
    def refused(error: CollectorError) -> tuple[dict[str, Any], int]:
        answer: dict[str, Any] = {"error": str(error), "next_step": error.next_step}
        if isinstance(error, SamplersMixed):
            answer["samplers"] = error.samplers
        return answer, error.status

    @paths.errorhandler(HTTPException)
    def not_found(error: HTTPException) -> tuple[dict[str, str], int]:
        return {"error": error.description or error.name, "next_step": "see docs/api.md"}, error.code or 400

    @paths.get("/health")
    def health() -> Response:
        return jsonify(status="ok", version=version)

    @paths.get("/status")
    def status() -> Response:
        return jsonify(
            version=version,
            uptime_s=round(time.time() - started, 3),
            **counters.snapshot(),
            queue=store.queue_depth(),
            forward_queue=forward_queue(),
            series=len(store.dictionaries.series),
            metric_series=len(store.dictionaries.metric_series),
            frames=len(store.dictionaries.tries.frames),
            nodes=len(store.dictionaries.tries.node_parent),
            bytes_on_disk=store.size(),
            duckdb=duckdb.__version__,
        )

    @paths.get("/types")
    def types() -> Response:
        return jsonify(types=catalogue.types(store, read_range(request.args)))

    @paths.get("/labels")
    def labels() -> Response:
        return jsonify(labels=catalogue.label_names(store, read_range(request.args)))

    @paths.get("/labels/<name>/values")
    def values(name: str) -> Response:
        query = request.args
        return jsonify(values=catalogue.label_values(store, name, read_matchers(query), read_range(query)))

    @paths.get("/series")
    def series() -> Response:
        query = request.args
        column = read_column(query) if query.get("type") else None
        return jsonify(series=catalogue.series_rows(store, column, read_matchers(query), read_range(query)))

    @paths.get("/flamegraph")
    def flamegraph() -> Response:
        query = request.args
        column, max_nodes = read_column(query), read_count(query, "max_nodes", _MAX_NODES, _MOST_NODES)
        selection = select(store, column.type.name, read_matchers(query), read_range(query))
        samplers = samplers_of(store, column, present_series(store, selection))
        tries = store.dictionaries.tries
        root, pruned = flame_tree(tries, merge(tries, sums_by_node(store, column, selection)), max_nodes)
        answer = jsonify(
            type=column.id,
            unit=column.unit,
            total=root["value"],
            samplers=samplers,
            losses=losses(store, selection),
            pruned=pruned,
        )
        head = answer.get_data(as_text=True).rstrip()
        return Response(f'{head[:-1]}, "root": {dump_tree(root)}}}', mimetype="application/json")

    @paths.get("/stitch")
    def stitched() -> Response:
        query = request.args
        max_nodes = read_count(query, "max_nodes", _MAX_NODES, _MOST_NODES)
        answer = all_tiers(store, read_matchers(query), read_range(query))
        root, pruned = fold(answer.pop("root"), max_nodes)
        head = jsonify(**answer, pruned=pruned).get_data(as_text=True).rstrip()
        return Response(f'{head[:-1]}, "root": {dump_tree(root)}}}', mimetype="application/json")

    @paths.get("/top")
    def top() -> Response:
        query = request.args
        column, limit = read_column(query), read_count(query, "limit", _TOP_ROWS, _MOST_TOP_ROWS)
        kind = query.get("kind", "")
        if kind and kind not in KINDS:
            raise BadRequest(f"kind {kind[:40]!r} is not known", next_step=f"use one of {', '.join(KINDS)}")
        selection = select(store, column.type.name, read_matchers(query), read_range(query))
        samplers_of(store, column, present_series(store, selection))
        tries = store.dictionaries.tries
        calls = merge(tries, sums_by_node(store, column, selection))
        return jsonify(unit=column.unit, total=int(calls.total[0]), rows=top_rows(tries, calls, limit, kind))

    @paths.get("/breakdown")
    def broken_down() -> Response:
        query = request.args
        column, by = read_column(query), read_dimensions(query.get("by", ""))
        selection = select(store, column.type.name, read_matchers(query), read_range(query))
        if "sampler" not in by:
            samplers_of(store, column, present_series(store, selection))
        return jsonify(breakdown(store, column, selection, by))

    @paths.get("/spans")
    def spans() -> Response:
        query = request.args
        limit = read_count(query, "limit", _SPANS, _MOST_SPANS)
        if "trace_id" not in query:
            return jsonify(newest_spans(store, read_range(query), limit))
        trace_id = query["trace_id"].lower()
        if len(trace_id) != 32 or trace_id.strip("0123456789abcdef"):
            raise BadRequest(f"trace_id {trace_id[:40]!r} is not 32 hexadecimal digits")
        return jsonify(spans_of_trace(store, trace_id, limit))

    @paths.get("/metrics")
    def metric() -> Response:
        query = request.args
        name = query.get("name", "")
        if not name:
            raise BadRequest("name is missing", next_step="name=* lists every metric")
        matchers, time_range = read_matchers(query), read_range(query)
        if name.endswith("*"):
            return jsonify(metrics=metrics(store, name, matchers, time_range))
        return jsonify(one_metric(store, name, matchers, time_range))

    @paths.get("/bursts")
    def in_bursts() -> Response:
        query = request.args
        name = query.get("name", "")
        if not name or name.endswith("*"):
            raise BadRequest("name must be one metric's", next_step="try name=system.disk.operations")
        return jsonify(bursts(store, name, read_matchers(query), read_range(query)))

    @paths.get("/deltas")
    def growth() -> Response:
        query = request.args
        name = query.get("name", "")
        if not name:
            raise BadRequest("name is missing", next_step="name=postgresql.table.* is what tables counted")
        return jsonify(rows=deltas(store, name, read_matchers(query), read_range(query)))

    return paths
