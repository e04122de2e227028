"""py-spy's raw format, and CPU spread over its counts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from quayscope.profile import Frame
from quayscope.sidecar.python import parse_raw, spread


def test_raw_lines() -> None:
    """Frames are read root first with file and line; what is no stack is passed over."""
    text = (
        "main (/app/run (1).py:10);work (/app/run (1).py:3) 7\n"
        "<module> (x.py:1);<genexpr> (x.py:2) 1\n"
        "native_thing 2\n"
        "no count\n\n 5\n"
    )
    assert parse_raw(text) == [
        ((Frame("main", "/app/run (1).py", 10, "python"), Frame("work", "/app/run (1).py", 3, "python")), 7),
        ((Frame("<module>", "x.py", 1, "python"), Frame("<genexpr>", "x.py", 2, "python")), 1),
        ((Frame("native_thing", kind="python"),), 2),
    ]


@given(st.integers(0, 10**12), st.lists(st.integers(1, 10**6), max_size=50))
def test_spread_keeps_the_total(total: int, counts: list[int]) -> None:
    """Shares are in proportion to within a unit, and add up to the total."""
    shares = spread(total, counts)
    assert len(shares) == len(counts)
    if counts:
        assert sum(shares) == total
        assert all(
            abs(share - total * count / sum(counts)) <= 1 + total * 1e-9
            for share, count in zip(shares, counts, strict=True)
        )


@given(st.text())
def test_any_text(text: str) -> None:
    """Whatever a program writes there, it is read or passed over."""
    parse_raw(text)
