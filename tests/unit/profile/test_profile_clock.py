"""What a sender says of its clock, and by how much its times are moved for that."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quayscope.profile import PROCESS_CPU, Attributes, Frame, Profile
from quayscope.profile.clock import ClockEstimate, read_clock

SECOND = 10**9


@given(st.integers(-(10**17), 10**17), st.integers(0, 10**17))
def test_the_header_says_the_estimate(offset: int, error: int) -> None:
    """To the nanosecond; slots stay on whole seconds and are off by half of one at most."""
    clock = ClockEstimate(offset, error)
    assert read_clock(clock.header()) == clock
    assert clock.seconds_ns % SECOND == 0
    assert abs(clock.seconds_ns - offset) <= SECOND // 2
    assert clock.proven_ns in (0, offset)


@given(st.text())
@pytest.mark.parametrize("form", ["{}", "offset={}, error=1", "offset=1, error={}"])
def test_anything_else_is_none(form: str, text: str) -> None:
    """No text is an error, and none says a number that cannot be."""
    found = read_clock(form.format(text))
    assert found is None or (abs(found.offset_ns) < 10**18 and 0 <= found.error_ns < 10**18)


@pytest.mark.parametrize(
    ("offset", "error", "moved", "event"),
    [
        (3_000_000, 200_000, 0, 3_000_000),
        (200_000, 300_000, 0, 0),
        (-2_600_000_000, 10**6, -3, -2_600_000_000),
    ],
)
def test_what_is_moved(offset: int, error: int, moved: int, event: int) -> None:
    """Samples by the nearest second, so that milliseconds do not; spans where the offset is proven."""
    clock = ClockEstimate(offset, error)
    assert (clock.seconds_ns, clock.proven_ns) == (moved * SECOND, event)


def test_a_profile_is_moved_whole() -> None:
    """Its start and all slots; slots that are not known stay so."""
    profile = Profile(PROCESS_CPU, {"service_name": "s"}, 10 * SECOND, SECOND)
    for slot in (10 * SECOND, 0):
        profile.add((Frame("f"),), Attributes(slot, "GET /"), (1, 5))
    profile.move(-3 * SECOND)
    assert profile.start_ns == 7 * SECOND
    assert [about.slot_ns for _, about in profile.samples] == [7 * SECOND, 0]
    assert profile.totals() == (2, 10)
