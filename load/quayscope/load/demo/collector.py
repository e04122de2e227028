"""Asks a collector over its HTTP interface (docs/api.md)."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from typing import Any

from quayscope.load.demo.errors import DemoError

__all__ = ["CollectorClient"]


class CollectorClient:
    """Reads from one collector within one time range, Unix seconds [start, end)."""

    def __init__(self, url: str, start: float, end: float, timeout_s: float = 20.0) -> None:
        self._url = url.rstrip("/")
        self._range = [("from", f"{start:.3f}"), ("to", f"{end:.3f}")]
        self._timeout = timeout_s

    def get(self, path: str, parameters: Sequence[tuple[str, str]] = ()) -> dict[str, Any]:
        """Return the JSON object at `path`; raises `DemoError` when the collector does not answer well."""
        url = f"{self._url}{path}?{urllib.parse.urlencode([*self._range, *parameters])}"
        try:
            with urllib.request.urlopen(url, timeout=self._timeout) as answer:  # noqa: S310 - http, our own collector
                content = json.load(answer)
        except urllib.error.HTTPError as error:
            detail = error.read(2000).decode(errors="replace")
            raise DemoError(f"the collector answered {error.code} to {path}: {detail}") from error
        except (OSError, ValueError) as error:
            raise DemoError(f"the collector does not answer: {error}") from error
        if not isinstance(content, dict):
            raise DemoError(f"the collector answered something unexpected to {path}")
        return content

    def breakdown(self, kind: str, by: Sequence[str], match: Sequence[str] = ()) -> list[dict[str, Any]]:
        """Return the values of a profile type grouped by dimensions."""
        parameters = [("type", kind), ("by", ",".join(by)), *(("match", term) for term in match)]
        rows = self.get("/api/v1/breakdown", parameters)["rows"]
        assert isinstance(rows, list)
        return rows

    def flamegraph(self, kind: str, match: Sequence[str]) -> dict[str, Any]:
        """Return the merged tree's root."""
        parameters = [("type", kind), *(("match", term) for term in match)]
        root = self.get("/api/v1/flamegraph", parameters)["root"]
        assert isinstance(root, dict)
        return root

    def series(self, kind: str) -> list[dict[str, Any]]:
        """Return the series of a profile type with their losses."""
        rows = self.get("/api/v1/series", [("type", kind)])["series"]
        assert isinstance(rows, list)
        return rows

    def span_count(self) -> int:
        """Return the number of spans in the range."""
        return int(self.get("/api/v1/spans", [("limit", "1")])["count"])

    def metrics(self, name: str) -> list[dict[str, Any]]:
        """Return the metrics whose name is or, with a trailing `*`, starts with `name`."""
        answer = self.get("/api/v1/metrics", [("name", name)])
        rows = answer["metrics"] if name.endswith("*") else [answer]
        assert isinstance(rows, list)
        return rows
