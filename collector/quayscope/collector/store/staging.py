"""Entries to rows: every name becomes a dense integer, every stack a node."""

from __future__ import annotations

import struct
import time
import zlib

from quayscope.collector.store.dictionaries import Dictionaries, label_text
from quayscope.collector.store.entries import MetricPoint, MetricsEntry, ProfileEntry, SpansEntry, Work
from quayscope.collector.store.rows import Rows
from quayscope.collector.store.tries import DictionaryFull
from quayscope.profile import Profile
from quayscope.profile.clock import ClockEstimate

__all__ = ["Staged", "stage"]

_VALUE_COLUMNS = 4


class Staged:
    """One transaction: its rows, and what becomes true once it is on disk."""

    def __init__(self) -> None:
        self.rows = Rows()
        self.keys: dict[bytes, None] = {}
        self.profiles: list[Profile] = []
        self.messages = 0
        self.counts: dict[str, int] = {}

    def count(self, name: str, count: int = 1) -> None:
        """Note `count` for the counter `name`, added when the transaction is on disk."""
        self.counts[name] = self.counts.get(name, 0) + count


def stage(works: list[Work], dictionaries: Dictionaries, next_message: int) -> Staged:
    """Turn the works of one transaction into rows; `next_message` is the first free message id.

    Entries that a full dictionary keeps out are noted on their work's ticket and counted; their
    neighbours are staged. Entries whose key is on disk, or twice in here, count as duplicates.
    """
    staged = Staged()
    now_ns = time.time_ns()
    for work in works:
        # A work that is staged again after a failed transaction starts from nothing.
        work.ticket.refused.clear()
        for profile in work.profiles:
            if _is_new(profile.key, staged, dictionaries):
                try:
                    _stage_profile(profile, staged, dictionaries, now_ns)
                except DictionaryFull as full:
                    work.ticket.refused.append(str(full))
                    staged.count("refused")
        for spans in work.spans:
            if _is_new(spans.key, staged, dictionaries):
                _stage_spans(spans, staged, next_message + staged.messages, now_ns)
        for metrics in work.metrics:
            if _is_new(metrics.key, staged, dictionaries):
                _stage_metrics(metrics, staged, dictionaries, now_ns, work)
    _stage_dictionaries(staged.rows, dictionaries)
    return staged


def _is_new(key: bytes, staged: Staged, dictionaries: Dictionaries) -> bool:
    if not key:
        return True
    if key in staged.keys or dictionaries.is_stored(key):
        staged.count("duplicates")
        return False
    return True


def _stage_profile(entry: ProfileEntry, staged: Staged, dictionaries: Dictionaries, now_ns: int) -> None:
    profile = entry.profile
    series = dictionaries.series_id(profile.type.name, profile.labels)
    node_of, memo, stacks = dictionaries.tries.node_of, dict[int, int](), dict[int, int]()
    string_id, link_id = dictionaries.string_id, dictionaries.link_id
    about: dict[tuple[str, str, str, str, str], tuple[int, int, int, int]] = {}
    padding = (0,) * (_VALUE_COLUMNS - len(profile.type.values))
    times, nodes, links, endpoints, runs, phases, pids = [], [], [], [], [], [], []
    values: list[tuple[int, ...]] = []
    for (stack, attributes), sample in profile.samples.items():
        slot, endpoint, run, phase, pid, span, trace = attributes
        key = (endpoint, run, phase, span, trace)
        ids = about.get(key)
        if ids is None:
            ids = about[key] = (
                link_id(span, trace, slot or profile.start_ns),
                string_id(endpoint),
                string_id(run),
                string_id(phase),
            )
        times.append(slot or profile.start_ns)
        # Samples of one profile share their stack objects, and often a stack across requests.
        node = stacks.get(id(stack))
        if node is None:
            node = stacks[id(stack)] = node_of(stack, memo)
        nodes.append(node)
        values.append((*sample, *padding))
        links.append(ids[0])
        endpoints.append(ids[1])
        runs.append(ids[2])
        phases.append(ids[3])
        pids.append(pid)
    # Rows are added only now, when no dictionary can refuse any more: a profile is stored whole or not.
    if values:
        columns = [list(column) for column in zip(*values, strict=True)]
        staged.rows.columns(
            "samples", times, [series] * len(times), nodes, *columns, links, endpoints, runs, phases, pids
        )
    losses = profile.losses
    staged.rows.row(
        "profiles",
        series,
        profile.start_ns,
        profile.start_ns + profile.duration_ns,
        now_ns,
        entry.key,
        losses.lost,
        losses.late,
        losses.truncated,
        losses.unproven,
        losses.unattributed,
        *_clock(entry.clock),
    )
    if entry.key:
        staged.keys[entry.key] = None
    staged.profiles.append(profile)
    staged.count("stored")


def _stage_spans(entry: SpansEntry, staged: Staged, message: int, now_ns: int) -> None:
    moved = entry.clock.proven_ns if entry.clock is not None else 0
    staged.rows.row(
        "messages",
        message,
        now_ns,
        entry.key,
        entry.spans,
        entry.first_ns + moved,
        entry.last_ns + moved,
        # Level 1: the whole message compressed costs 0.2 us a span, a row a span three times as much.
        zlib.compress(entry.body, 1),
        *_clock(entry.clock),
    )
    halves = struct.unpack(f">{len(entry.traces) // 8}Q", entry.traces)
    high, low = list(halves[0::2]), list(halves[1::2])
    staged.rows.columns("traces", high, low, [message] * len(high))
    staged.messages += 1
    staged.keys[entry.key] = None
    staged.count("spans_stored", entry.spans)


def _clock(clock: ClockEstimate | None) -> ClockEstimate:
    return ClockEstimate(0, -1) if clock is None else clock


def _stage_metrics(
    entry: MetricsEntry, staged: Staged, dictionaries: Dictionaries, now_ns: int, work: Work
) -> None:
    refused = 0
    for point in entry.points:
        try:
            series = dictionaries.metric_series_id(point)
        except DictionaryFull as full:
            if not refused:
                work.ticket.refused.append(str(full))
            refused += 1
            staged.count("exemplars_refused", len(point.exemplars))
            continue
        buckets = struct.pack(f"<{len(point.buckets)}q", *point.buckets)
        staged.rows.row("points", point.time_ns, series, point.value, point.observations, buckets)
        _stage_exemplars(point, series, staged)
    if refused:
        staged.count("points_refused", refused)
    staged.rows.row("metric_messages", now_ns, entry.key)
    staged.keys[entry.key] = None
    staged.count("points_stored", len(entry.points) - refused)


def _stage_exemplars(point: MetricPoint, series: int, staged: Staged) -> None:
    for one in point.exemplars:
        span = int.from_bytes(one.span_id, "big")
        high, low = (int.from_bytes(half, "big") for half in (one.trace_id[:8], one.trace_id[8:]))
        attributes = label_text(dict(one.attributes))
        staged.rows.row("exemplars", one.time_ns, series, one.value, span, high, low, attributes)
    staged.count("exemplars_stored", len(point.exemplars))


def _stage_dictionaries(rows: Rows, dictionaries: Dictionaries) -> None:
    rows.rows("series", dictionaries.new_series)
    rows.rows("strings", dictionaries.new_strings)
    rows.rows("frames", ((number, *frame) for number, frame in dictionaries.tries.new_frames))
    rows.rows("nodes", dictionaries.tries.new_nodes)
    rows.rows("links", dictionaries.new_links)
    rows.rows("metric_series", dictionaries.new_metric_series)
