"""How far the clock of whoever sends is from the receiver's: a header of what is sent.

Profiles lie in slots of whole seconds, so they are moved by whole seconds: a clock that is off by
milliseconds leaves every sample in its second. Spans have times of their own, and are moved by the estimate.
"""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["CLOCK_HEADER", "ClockEstimate", "read_clock"]

CLOCK_HEADER = "Quayscope-Clock"
_FORM = re.compile(r"offset=(-?[0-9]{1,18}), error=([0-9]{1,18})")
_SECOND_NS = 10**9


class ClockEstimate(NamedTuple):
    """What to add to the sender's clock for the receiver's, wrong by `error_ns` at most; nanoseconds."""

    offset_ns: int
    error_ns: int

    def header(self) -> str:
        """Return it as the header's value."""
        return f"offset={self.offset_ns}, error={self.error_ns}"

    @property
    def seconds_ns(self) -> int:
        """By how much slots are moved: the nearest whole second."""
        return (self.offset_ns + _SECOND_NS // 2) // _SECOND_NS * _SECOND_NS

    @property
    def proven_ns(self) -> int:
        """By how much single times are moved: nothing while the two clocks may as well be the same."""
        return self.offset_ns if abs(self.offset_ns) > self.error_ns else 0


def read_clock(text: str) -> ClockEstimate | None:
    """Read the header's value; None where it is not one."""
    found = _FORM.fullmatch(text)
    return ClockEstimate(int(found[1]), int(found[2])) if found else None
