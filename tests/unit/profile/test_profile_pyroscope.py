"""Profiles as a Pyroscope can hold them."""

from __future__ import annotations

from quayscope.profile import PROCESS_CPU, Attributes, Frame, Losses, Profile
from quayscope.profile.pprof import decode
from quayscope.profile.pyroscope import mapped, pieces, pyroscope_series


def large(samples: int) -> Profile:
    """A profile with many distinct samples."""
    made = Profile(PROCESS_CPU, {"service_name": "s"}, 10**18, 10**9, losses=Losses(lost=5))
    for number in range(samples):
        stack = (Frame("main"), Frame(f"f{number}"))
        made.add(stack, Attributes(10**18 + number, f"GET /{number % 3}", "r", "p", number), (1, number + 1))
    return made


def test_mapping_keeps_sums_and_ids() -> None:
    """Samples that differed only in what is dropped fall together; endpoints are root frames."""
    made = Profile(PROCESS_CPU, {"service_name": "s"}, 10**18, 10**9)
    stack = (Frame("main"),)
    for pid in (1, 2):
        made.add(stack, Attributes(10**18, "GET /", "r", "p", pid, "a" * 16, "b" * 32), (1, 10))
    made.add(stack, Attributes(pid=3), (1, 5))
    assert mapped(made).samples == {
        ((Frame("GET /", "", 0, "root"), Frame("main")), Attributes(span_id="a" * 16, trace_id="b" * 32)): (
            2,
            20,
        ),
        ((Frame("main"),), Attributes()): (1, 5),
    }


def test_pieces_fit_both_limits_and_sum_up() -> None:
    """A profile past either limit is split; samples and losses appear once."""
    made = large(1000)
    for max_samples, max_bytes, least in ((300, 1 << 20, 4), (10**6, 8000, 4), (10**6, 1 << 20, 1)):
        parts = [decode(data) for data in pieces(made, max_samples, max_bytes)]
        assert len(parts) >= least
        assert all(len(part.samples) <= max_samples for part in parts)
        assert sum(part.totals()[1] for part in parts) == made.totals()[1]
        assert sum(part.losses.lost for part in parts) == 5


def test_a_profile_becomes_series_to_push() -> None:
    """Each piece has the profile's labels and type, and an id of its own."""
    made = large(20_000)
    series = pyroscope_series(made)
    assert len(series) == 2
    assert all(one.labels == {"service_name": "s", "__name__": "process_cpu"} for one in series)
    ids = [push_id for one in series for push_id, _ in one.samples]
    assert len(set(ids)) == 2
    parts = [decode(data) for one in series for _, data in one.samples]
    assert sum(part.totals()[1] for part in parts) == made.totals()[1]
    assert {stack[0].kind for part in parts for stack, _ in part.samples} == {"root"}
