"""What was seen of each request: raw columns, appended while the run goes on, binned when it is over.

Appending costs less than updating a histogram would, and nothing is rounded before it must be.
"""

from __future__ import annotations

from array import array
from collections import Counter

import numpy as np
import numpy.typing as npt

__all__ = ["CAPTURE_MISSING", "NOT_ON_TARGET", "Columns", "Record"]

CAPTURE_MISSING = -1
"""In place of libcurl's error: the status was right, but a value the flow needs was not in the answer."""
NOT_ON_TARGET = -2
"""In place of libcurl's error: what was to be requested is no path, so nothing was sent."""

Integers = npt.NDArray[np.int64]


_RECENT = 5000
"""Requests that a glance during the run looks at: it must not hold up the next arrival."""


class Columns:
    """A record's requests as arrays, an element a request, in the order they ended. Times: nanoseconds."""

    def __init__(self, record: Record) -> None:
        def view(column: array[int]) -> Integers:
            return np.frombuffer(column, dtype=np.int64) if column else np.empty(0, dtype=np.int64)

        self.intended = view(record.intended)
        self.sent = view(record.sent)
        self.ended = view(record.ended)
        self.status = view(record.status)
        self.error = view(record.error)
        self.endpoint = view(record.endpoint)
        self.stage = view(record.stage)
        self.step = view(record.step)
        self.ok = view(record.ok)


class Record:
    """Columns of ended requests, and counts of what never was one.

    Times are `time.monotonic_ns`. `endpoint` and `stage` are indices; `step` is the request's place in its
    flow (0: an arrival); `error` is libcurl's number or one of this module's. The counters are by
    (stage, endpoint): `dropped`, arrivals that came while too much was in flight; `missed`, arrivals that
    the driver was too late for; `unanswered`, requests in flight when the run was interrupted; `skipped`,
    requests not sent since an earlier one of their flow failed.
    """

    def __init__(self) -> None:
        self.intended = array("q")
        self.sent = array("q")
        self.first = array("q")
        self.ended = array("q")
        self.status = array("q")
        self.error = array("q")
        self.size = array("q")
        self.endpoint = array("q")
        self.stage = array("q")
        self.step = array("q")
        self.ok = array("q")
        self.ok_count = 0
        self.dropped: Counter[tuple[int, int]] = Counter()
        self.missed: Counter[tuple[int, int]] = Counter()
        self.unanswered: Counter[tuple[int, int]] = Counter()
        self.skipped: Counter[tuple[int, int]] = Counter()

    def __len__(self) -> int:
        return len(self.ended)

    def add(
        self,
        *,
        intended: int,
        sent: int,
        first: int,
        ended: int,
        status: int,
        error: int,
        size: int,
        endpoint: int,
        stage: int,
        step: int,
        ok: bool,
    ) -> None:
        """Append one ended request."""
        self.intended.append(intended)
        self.sent.append(sent)
        self.first.append(first)
        self.ended.append(ended)
        self.status.append(status)
        self.error.append(error)
        self.size.append(size)
        self.endpoint.append(endpoint)
        self.stage.append(stage)
        self.step.append(step)
        self.ok.append(ok)
        self.ok_count += ok

    def recent_p99_ms(self, since: int) -> float | None:
        """Return the 99th percentile latency in milliseconds of the requests from index `since` on."""
        since = max(since, len(self) - _RECENT)
        if since >= len(self):
            return None
        ended = np.array(self.ended[since:], dtype=np.int64)
        return float(np.quantile(ended - np.array(self.intended[since:], dtype=np.int64), 0.99)) / 1e6


# numpy's first quantile loads and compiles for 40 ms, hundreds on a busy machine: too long in mid-run.
np.quantile(np.zeros(2, dtype=np.int64), 0.99)
