"""What reading Postgres costs, and how much of its CPU gets a statement: `python -m bench.postgres`.

Prints a table and writes flat figures. Exits with 1 when a bound was missed, with 3 when it could not be
measured.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from bench.postgres.parts import JOINS, PARTS, QUICK_JOINS, Given
from bench.postgres.report import missed, surroundings, table
from integration.sidecar.conftest import Server
from plain_user import NOBODY
from postgres.installs import install

OUTPUT = Path("build/bench/postgres.json")


def main() -> int:
    """Run the parts asked for; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.postgres", description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0, help="length of a measurement (default 30)")
    parser.add_argument("--pairs", type=int, default=12, help="pairs of rounds (default 12)")
    parser.add_argument("--quick", action="store_true", help="as little as shows that it works: no verdict")
    parser.add_argument(
        "--parts", default=",".join(PARTS), help=f"which ones, comma-separated: {', '.join(PARTS)}"
    )
    parser.add_argument("--output", type=Path, default=OUTPUT, help=f"file for the figures ({OUTPUT})")
    given = parser.parse_args()
    parts = [name for name in given.parts.split(",") if name]
    unknown = [name for name in parts if name not in PARTS]
    if unknown:
        parser.error(f"no such part: {', '.join(unknown)}; there are {', '.join(PARTS)}")
    signal.signal(signal.SIGTERM, _end)
    try:
        figures = _run(parts, given.seconds, given.pairs, quick=given.quick)
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130
    except Exception as error:  # noqa: BLE001 - whatever it was, no figure may be taken for a verdict
        traceback.print_exception(error)
        return 3
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(json.dumps(figures, indent=1, sort_keys=True) + "\n")
    print(table(figures))
    print(f"\nwritten to {given.output}")
    wrong = [] if given.quick else missed(figures)
    for line in wrong:
        print(f"missed: {line}")
    return 1 if wrong else 0


def _end(_: int, __: FrameType | None) -> None:
    raise KeyboardInterrupt


def _run(parts: list[str], seconds: float, pairs: int, *, quick: bool) -> dict[str, object]:
    figures: dict[str, object] = dict(surroundings())
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:5.0f} s  {text}", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory(prefix="quayscope-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o711)  # Postgres runs as another user when we are root
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
            2.0 if quick else seconds,
            1 if quick else pairs,
            1.0 if quick else 5.0,
            say,
        )
        for part in parts:
            figures.update(PARTS[part](given))
    figures["duration_s"] = round(time.monotonic() - began)
    return figures


if __name__ == "__main__":
    sys.exit(main())
