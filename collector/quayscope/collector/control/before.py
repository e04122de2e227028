"""The continuous profiles of the time before a capture, as one profile a type."""

from __future__ import annotations

from quayscope.collector.control.merging import merge_all
from quayscope.collector.query.request import TimeRange
from quayscope.collector.query.select import fetch
from quayscope.collector.store import Store
from quayscope.profile import TYPES, Attributes, Frame, Profile, Stack

__all__ = ["before"]

_MOST_ROWS = 200_000


def before(store: Store, span: TimeRange) -> dict[str, Profile]:
    """Return them by type. Of a service's CPU that several samplers saw, that of the one that saw most.

    At most 200,000 stacks, the heaviest; the rest counts as lost. Raises `StoreUnavailable`.
    """
    rows = fetch(
        store,
        "SELECT series, node, sum(v0)::BIGINT AS v0, sum(v1)::BIGINT AS v1, sum(v2)::BIGINT AS v2, "
        "sum(v3)::BIGINT AS v3 FROM samples WHERE ts >= ? AND ts < ? GROUP BY series, node "
        "ORDER BY v1 DESC LIMIT ?",
        [*span, _MOST_ROWS + 1],
    )
    columns = [rows[name].tolist() for name in ("series", "node", "v0", "v1", "v2", "v3")]
    stacks = _Stacks(store)
    profiles: dict[int, Profile] = {}
    for at, (series, node, *values) in enumerate(zip(*columns, strict=True)):
        kind, labels = store.dictionaries.series[series]
        profile = profiles.setdefault(
            series, Profile(TYPES[kind], dict(labels), span.start_ns, span.end_ns - span.start_ns)
        )
        if at >= _MOST_ROWS:
            profile.losses.lost += 1
        else:
            profile.add(stacks.of(node), Attributes(), tuple(values[: len(profile.type.values)]))
    return merge_all(_one_sampler_each(list(profiles.values())))


def _one_sampler_each(profiles: list[Profile]) -> list[Profile]:
    seen: dict[tuple[str, str], int] = {}
    for one in profiles:
        if one.type.name == "process_cpu":
            key = (one.labels.get("service_name", ""), one.labels.get("sampler", ""))
            seen[key] = seen.get(key, 0) + one.totals()[-1]
    best = {service: max(value for (of, _), value in seen.items() if of == service) for service, _ in seen}
    return [
        one
        for one in profiles
        if one.type.name != "process_cpu"
        or seen[one.labels.get("service_name", ""), one.labels.get("sampler", "")]
        == best[one.labels.get("service_name", "")]
    ]


class _Stacks:
    """Stacks of the store's nodes, prefixes shared."""

    def __init__(self, store: Store) -> None:
        tries = store.dictionaries.tries
        self._frames = tries.frames
        self._parents, self._frame_of = tries.node_parent.array(), tries.node_frame.array()
        self._known: dict[int, Stack] = {0: ()}

    def of(self, node: int) -> Stack:
        """Return a node's stack, root first."""
        path = []
        while node not in self._known:
            path.append(node)
            node = int(self._parents[node])
        stack = self._known[node]
        for one in reversed(path):
            frame: Frame = self._frames[int(self._frame_of[one])]
            stack = self._known[one] = (*stack, frame)
        return stack
