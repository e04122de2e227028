"""What the native sampler costs and is worth: `make bench-sidecar`, or `python -m bench.sidecar`.

Prints a table and writes flat figures. Exits with 1 when a bound was missed, with 3 when it could not be
measured.
"""

from __future__ import annotations

import sys

from bench.command import Asked, command
from bench.sidecar.load import busy_postgres
from bench.sidecar.parts import PARTS, Given
from bench.sidecar.report import REPORT


def measure(asked: Asked) -> dict[str, object]:
    """Return the figures of the parts asked for."""
    figures: dict[str, object] = {}
    quick, seconds = asked.quick, asked.seconds
    with busy_postgres(asked.folder) as (server, load):
        given = Given(
            asked.folder,
            server,
            load,
            3.0 if quick else seconds,
            3.0 if quick else max(180.0, seconds),
            1 if quick else asked.pairs,
            0.5 if quick else 3.0,
            asked.say,
        )
        for part in asked.parts:
            figures.update(PARTS[part](given))
    return figures


if __name__ == "__main__":
    sys.exit(command("sidecar", __doc__ or "", PARTS, REPORT, measure, seconds=60.0))
