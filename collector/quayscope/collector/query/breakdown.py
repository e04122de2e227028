"""A profile's value by any dimensions: labels, attributes, the statement or the wait nearest the leaf."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from quayscope.collector.errors import BadRequest
from quayscope.collector.query.request import ATTRIBUTES, Column
from quayscope.collector.query.select import Selection, fetch
from quayscope.collector.query.tree import sum_by
from quayscope.collector.store import Store

__all__ = ["MAX_ROWS", "breakdown", "read_dimensions"]

MAX_ROWS = 10_000
"""Rows of one answer, the largest first."""

_MAX_DIMENSIONS = 6
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_FRAMES = ("sql", "wait")
_LINKED = ("span_id", "trace_id")
Codes = npt.NDArray[np.int64]


def read_dimensions(text: str) -> list[str]:
    """Read `by=A,B`; raises `BadRequest`."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise BadRequest("by is missing", next_step="try by=endpoint or by=service_name,role")
    if len(names) > _MAX_DIMENSIONS or len(set(names)) < len(names):
        raise BadRequest(f"by has {len(names)} dimensions: at most {_MAX_DIMENSIONS}, each once")
    reserved = {"value", "samples"} & set(names)
    for name in names:
        if name in reserved or not _NAME.fullmatch(name):
            raise BadRequest(f"{name[:80]!r} is not a label, an attribute, sql or wait")
    return names


def breakdown(store: Store, column: Column, selection: Selection, by: Sequence[str]) -> dict[str, Any]:
    """Return `rows` by falling value, each dimension's text with `value` and `samples`.

    `samples` sums the type's first column. Past `MAX_ROWS` the smallest are left out: `omitted`
    counts them and `omitted_value` is their sum.
    """
    grouped = list(dict.fromkeys(_source(name) for name in by))
    found = fetch(
        store,
        f"SELECT {', '.join(grouped)}, sum(v{column.at})::BIGINT AS value, sum(v0)::BIGINT AS first "  # noqa: S608 - columns of our own
        f"FROM samples WHERE {selection.where} GROUP BY {', '.join(grouped)}",
        selection.parameters,
    )
    values, firsts = found["value"].astype(np.int64), found["first"].astype(np.int64)
    codes, texts = [], []
    for name in by:
        code, text = _dimension(store, name, found[_source(name)].astype(np.int64))
        codes.append(code)
        texts.append(text)
    rows: list[dict[str, Any]] = []
    omitted = omitted_value = 0
    if len(values):
        keys, inverse = np.unique(np.stack(codes, axis=1), axis=0, return_inverse=True)
        inverse = inverse.reshape(-1).astype(np.int64)
        totals, samples = sum_by(inverse, values)[1], sum_by(inverse, firsts)[1]
        order = np.argsort(-totals, kind="stable")
        for index in order[:MAX_ROWS].tolist():
            row: dict[str, Any] = {
                name: text(int(keys[index, at])) for at, (name, text) in _numbered(by, texts)
            }
            rows.append({**row, "value": int(totals[index]), "samples": int(samples[index])})
        rest = order[MAX_ROWS:]
        omitted, omitted_value = len(rest), int(totals[rest].sum())
    return {"unit": column.unit, "rows": rows, "omitted": omitted, "omitted_value": omitted_value}


def _numbered(
    by: Sequence[str], texts: Sequence[Callable[[int], str]]
) -> list[tuple[int, tuple[str, Callable[[int], str]]]]:
    return list(enumerate(zip(by, texts, strict=True)))


def _source(name: str) -> str:
    """Return the column of `samples` that a dimension is derived from."""
    if name in _FRAMES:
        return "node"
    if name in _LINKED:
        return "link"
    return name if name in ATTRIBUTES else "series"


def _dimension(store: Store, name: str, ids: Codes) -> tuple[Codes, Callable[[int], str]]:
    """Return each row's code in a dimension, and the text of a code."""
    dictionaries = store.dictionaries
    if name in _FRAMES:
        tries = dictionaries.tries
        nearest = tries.node_sql if name == "sql" else tries.node_wait
        function = tries.frame_function.array()[nearest.array()[ids]].astype(np.int64)
        # Function 0 is the root of all, which stands for "none".
        return function, lambda code: tries.functions[code][0] if code else ""
    if name == "pid":
        return ids, lambda code: str(code) if code else ""
    if name in _LINKED:
        return _links(store, name, ids)
    if name in ATTRIBUTES:
        return ids, lambda code: dictionaries.strings[code]
    distinct = np.unique(ids).tolist()
    labels = [dictionaries.series[number].labels.get(name, "") for number in distinct]
    values = sorted(set(labels))
    code_of = np.array([values.index(label) for label in labels], dtype=np.int64)
    return code_of[np.searchsorted(np.array(distinct, dtype=np.int64), ids)], lambda code: values[code]


def _links(store: Store, name: str, ids: Codes) -> tuple[Codes, Callable[[int], str]]:
    texts = {0: ""}
    if len(ids):
        found = fetch(
            store,
            "SELECT id, span, trace_high, trace_low FROM links WHERE id BETWEEN ? AND ?",
            [int(ids.min()), int(ids.max())],
        )
        columns = (found[column].tolist() for column in ("id", "span", "trace_high", "trace_low"))
        for number, span, high, low in zip(*columns, strict=True):
            text = f"{span:016x}" if name == "span_id" else f"{high:016x}{low:016x}"
            texts[number] = text if text.strip("0") else ""
    # Several links can share a trace: their rows must fall together.
    values = sorted(set(texts.values()))
    position = {text: at for at, text in enumerate(values)}
    code = np.array([position[texts.get(number, "")] for number in ids.tolist()], dtype=np.int64)
    return code, lambda code: values[code]
