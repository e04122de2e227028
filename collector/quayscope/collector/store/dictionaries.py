"""Names to dense integers: series, strings, request links and metric series, with the rows not yet on disk.

Only the writer thread adds; readers look up under the same append-only rule as the tries.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from typing import NamedTuple

from quayscope.collector.limits import MAX_SERIES, MAX_STRINGS
from quayscope.collector.store.entries import MetricPoint
from quayscope.collector.store.tries import DictionaryFull, Tries, storable

__all__ = ["Dictionaries", "MetricSeries", "Series", "label_text"]

_LINKS_REMEMBERED = 200_000
_KEYS_REMEMBERED = 1_000_000


class Series(NamedTuple):
    """A profile series: the type's name and the series labels."""

    type: str
    labels: dict[str, str]


class MetricSeries(NamedTuple):
    """A metric series: what every point of it shares."""

    name: str
    unit: str
    kind: str
    attributes: dict[str, str]
    bounds: tuple[float, ...]


def label_text(labels: Mapping[str, str]) -> str:
    """Labels as JSON with sorted keys: equal labels give equal text."""
    return json.dumps(dict(labels), sort_keys=True, ensure_ascii=False, separators=(",", ":"))


class Dictionaries:
    """All dictionaries of one store."""

    def __init__(self) -> None:
        self.tries = Tries()
        self.series: list[Series] = []
        self._series_ids: dict[tuple[str, str], int] = {}
        self.strings: list[str] = [""]
        self.string_ids: dict[str, int] = {"": 0}
        self.metric_series: list[MetricSeries] = []
        self._metric_ids: dict[tuple[str, str, str, tuple[tuple[str, str], ...], tuple[float, ...]], int] = {}
        self._links: OrderedDict[tuple[int, int, int], int] = OrderedDict()
        self._next_link = 1
        self._keys: OrderedDict[bytes, None] = OrderedDict()
        self.new_series: list[tuple[int, str, str]] = []
        self.new_strings: list[tuple[int, str]] = []
        self.new_metric_series: list[tuple[int, str, str, str, str, str]] = []
        self.new_links: list[tuple[int, int, int, int, int]] = []

    def series_id(self, kind: str, labels: Mapping[str, str]) -> int:
        """Return the id of a series; raises `DictionaryFull`."""
        text = label_text(labels)
        found = self._series_ids.get((kind, text))
        if found is None:
            if len(self.series) >= MAX_SERIES:
                raise DictionaryFull(f"{MAX_SERIES} series are stored: no new ones are taken")
            found = self._series_ids[kind, text] = len(self.series)
            self.series.append(Series(kind, dict(labels)))
            self.new_series.append((found, kind, text))
        return found

    def string_id(self, text: str) -> int:
        """Return the id of an endpoint, run or phase; raises `DictionaryFull`."""
        found = self.string_ids.get(text)
        if found is not None:
            return found
        text = storable(text)
        found = self.string_ids.get(text)
        if found is None:
            if len(self.strings) >= MAX_STRINGS:
                raise DictionaryFull(f"{MAX_STRINGS} endpoints, runs and phases are stored: no new ones")
            found = self.string_ids[text] = len(self.strings)
            self.strings.append(text)
            self.new_strings.append((found, text))
        return found

    def link_id(self, span_id: str, trace_id: str, time_ns: int) -> int:
        """Return the id of one request's (span, trace); 0 where both are unknown.

        Rows of samples hold this instead of 24 random bytes each. A pair that was forgotten gets a
        second id, which costs a row and nothing else: queries look pairs up, not ids.
        """
        if not span_id and not trace_id:
            return 0
        trace = int(trace_id or "0", 16)
        key = (int(span_id or "0", 16), trace >> 64, trace & 0xFFFFFFFFFFFFFFFF)
        found = self._links.get(key)
        if found is None:
            found = self._links[key] = self._next_link
            self._next_link += 1
            self.new_links.append((found, *key, time_ns))
            if len(self._links) > _LINKS_REMEMBERED:
                self._links.popitem(last=False)
        return found

    def metric_series_id(self, point: MetricPoint) -> int:
        """Return the id of a point's series; raises `DictionaryFull`."""
        key = (point.name, point.unit, point.kind, point.attributes, point.bounds)
        found = self._metric_ids.get(key)
        if found is None:
            if len(self.metric_series) >= MAX_SERIES:
                raise DictionaryFull(f"{MAX_SERIES} metric series are stored: no new ones are taken")
            found = self._metric_ids[key] = len(self.metric_series)
            attributes = dict(point.attributes)
            series = MetricSeries(point.name, point.unit, point.kind, attributes, point.bounds)
            self.metric_series.append(series)
            self.new_metric_series.append(
                (found, point.name, point.unit, point.kind, label_text(attributes), json.dumps(point.bounds))
            )
        return found

    def is_stored(self, key: bytes) -> bool:
        """Whether something under this idempotency key is on disk, among the newest million."""
        return key in self._keys

    def remember(self, key: bytes) -> None:
        """Note a key whose entry is on disk."""
        self._keys[key] = None
        if len(self._keys) > _KEYS_REMEMBERED:
            self._keys.popitem(last=False)

    def load_series(self, rows: list[tuple[str, str]]) -> None:
        """Fill from disk: (type, labels as JSON) in id order."""
        for kind, text in rows:
            self._series_ids[kind, text] = len(self.series)
            self.series.append(Series(kind, json.loads(text)))

    def load_strings(self, rows: list[str]) -> None:
        """Fill from disk: strings 1.. in id order."""
        for text in rows:
            self.string_ids[text] = len(self.strings)
            self.strings.append(text)

    def load_metric_series(self, rows: list[tuple[str, str, str, str, str]]) -> None:
        """Fill from disk: (name, unit, kind, attributes, bounds) in id order."""
        for name, unit, kind, attributes_text, bounds_text in rows:
            attributes: dict[str, str] = json.loads(attributes_text)
            bounds = tuple(float(bound) for bound in json.loads(bounds_text))
            key = (name, unit, kind, tuple(sorted(attributes.items())), bounds)
            self._metric_ids[key] = len(self.metric_series)
            self.metric_series.append(MetricSeries(name, unit, kind, attributes, bounds))

    def load_links(self, next_link: int) -> None:
        """Continue after the ids on disk; older pairs get new ids when they come again."""
        self._next_link = next_link
