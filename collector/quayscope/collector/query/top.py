"""The table of functions: what each cost itself, and with what it called."""

from __future__ import annotations

from typing import Any

import numpy as np

from quayscope.collector.query.tree import Calls, sum_by
from quayscope.collector.store.tries import Tries

__all__ = ["top_rows"]


def top_rows(tries: Tries, calls: Calls, limit: int, kind: str = "") -> list[dict[str, Any]]:
    """Return the first `limit` functions by falling own value, only those of frame kind `kind` where given.

    A recursive function's total counts once a stack: calls below an equal one above add nothing.
    """
    functions, own = sum_by(calls.function, calls.own)
    outermost = ~calls.recursive
    total_functions, total_values = sum_by(calls.function[outermost], calls.total[outermost])
    total = np.zeros(len(functions), dtype=np.int64)
    total[np.searchsorted(functions, total_functions)] = total_values
    # The line that a function is shown with is that of its largest call.
    line = np.zeros(len(functions), dtype=np.int64)
    order = np.lexsort((calls.total, calls.own))
    line[np.searchsorted(functions, calls.function[order])] = calls.line[order]
    rows: list[dict[str, Any]] = []
    for index in np.lexsort((functions, -total, -own)).tolist():
        function, file, frame_kind = tries.functions[functions[index]]
        # The root of all is a row only where samples came without any stack.
        if (functions[index] == 0 and not own[index]) or (kind and frame_kind != kind):
            continue
        rows.append(
            {
                "function": function,
                "file": file,
                "line": int(line[index]),
                "kind": frame_kind,
                "self": int(own[index]),
                "total": int(total[index]),
            }
        )
        if len(rows) == limit:
            break
    return rows
