"""What reading Postgres costs, and how much of its CPU gets a statement: `python -m bench.postgres`.

Prints a table and writes flat figures. Exits with 1 when a bound was missed, with 3 when it could not be
measured.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from bench.command import Asked, command
from bench.postgres.parts import JOINS, PARTS, QUICK_JOINS, Given
from bench.postgres.report import REPORT
from integration.sidecar.conftest import Server
from plain_user import NOBODY
from postgres.installs import install


def measure(asked: Asked) -> dict[str, object]:
    """Return the figures of the parts asked for."""
    folder, quick = asked.folder, asked.quick
    binaries = install("15", Path(__file__).parents[3], folder)
    servers = 0

    @contextlib.contextmanager
    def start(*settings: str) -> Iterator[Server]:
        nonlocal servers
        servers += 1
        place = folder / f"server-{servers}"
        place.mkdir()
        if os.geteuid() == 0:
            os.chown(place, NOBODY, NOBODY)
        server = Server(place, binaries, *(part for one in settings for part in ("-c", one)))
        server.initialise()
        server.start()
        try:
            yield server
        finally:
            server.stop()

    given = Given(
        start,
        folder,
        QUICK_JOINS if quick else JOINS,
        2.0 if quick else asked.seconds,
        1 if quick else asked.pairs,
        1.0 if quick else 5.0,
        0.5 if quick else 5.0,
        asked.say,
    )
    figures: dict[str, object] = {}
    for part in asked.parts:
        figures.update(PARTS[part](given))
    return figures


if __name__ == "__main__":
    sys.exit(command("postgres", __doc__ or "", PARTS, REPORT, measure, seconds=30.0))
