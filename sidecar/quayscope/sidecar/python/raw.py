"""py-spy's raw format: `frame;frame;... COUNT` a line, root first, a frame as `function (file:line)`.

Source: github.com/benfred/py-spy, `src/flamegraph.rs`. A native frame (with `--native`) names its library and
has no line: `clock_nanosleep (libc.so.6)`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from quayscope.profile import Frame, Stack

__all__ = ["parse_raw", "spread"]

_FRAME = re.compile(r"(?P<function>.*?) \((?P<file>.*?)(?::(?P<line>[0-9]{1,9}))?\)", re.DOTALL)
_ADDRESS = re.compile(r"0x[0-9a-f]+")


def parse_raw(text: str) -> list[tuple[Stack, int]]:
    """Return the stacks, root first, with their counts; lines of another form are passed over."""
    found = []
    for line in text.splitlines():
        names, _, count = line.rpartition(" ")
        if names and count.isdigit() and count.isascii() and len(count) < 12:
            found.append((tuple(_frame(name) for name in names.split(";")), int(count)))
    return found


def _frame(name: str) -> Frame:
    match = _FRAME.fullmatch(name)
    if match is None:
        return Frame(name, kind="python")
    function, file, line = match.group("function", "file", "line")
    # An interpreted frame always has a line, if only 0.
    native = line is None and not file.endswith(".py")
    if native and _ADDRESS.fullmatch(function):
        # The bare address differs with each start of the program; whose code it is does not.
        function = f"[{file.strip('[]')}]"
    return Frame(function, file, int(line or 0), "native" if native else "python")


def spread(total: int, counts: Sequence[int]) -> list[int]:
    """Split `total` in proportion to `counts`, to the last unit."""
    weight = sum(counts)
    shares, given, seen = [], 0, 0
    for count in counts:
        seen += count
        upto = total * seen // weight if weight else 0
        shares.append(upto - given)
        given = upto
    return shares
