"""What the agent costs and is worth, beside the stock tools: `make bench-agent`, or `python -m bench.agent`.

Prints a table and writes flat figures. Exits with 1 when a bound that the agent is held to was missed, with
3 when it could not be measured.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from types import FrameType

import psycopg2

from bench.agent.app import TABLE
from bench.agent.parts import PARTS, Given
from bench.agent.report import missed, surroundings, table
from quayscope.load.demo.postgres import DemoPostgres

OUTPUT = Path("build/bench/agent.json")
PAIRS, QUICK_PAIRS = 30, 1
OTHERS_A_PAIR = 3
"""The stock tools are measured in so many times fewer pairs: nothing is asked of them."""


def main() -> int:
    """Run the parts asked for; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.agent", description=__doc__)
    parser.add_argument("--rounds", type=int, default=PAIRS, help=f"pairs of rounds (default {PAIRS})")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of a round (default 4)")
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
        figures = _run(parts, given.rounds, given.seconds, quick=given.quick)
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


def _run(parts: list[str], rounds: int, seconds: float, *, quick: bool) -> dict[str, object]:
    figures: dict[str, object] = dict(surroundings())
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="quayscope-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o711)  # Postgres runs as another user when we are root
        with DemoPostgres(folder / "postgres") as postgres:
            connection = psycopg2.connect(postgres.dsn)
            with connection, connection.cursor() as cursor:
                cursor.execute(TABLE)
            connection.close()
            given = Given(
                folder,
                postgres.dsn,
                QUICK_PAIRS if quick else rounds,
                QUICK_PAIRS if quick else max(1, rounds // OTHERS_A_PAIR),
                1.0 if quick else seconds,
                0.3 if quick else 1.5,
                2.0 if quick else 30.0,
                2 if quick else 10,
                1 if quick else 5,
                lambda text: print(f"{time.monotonic() - began:5.0f} s  {text}", file=sys.stderr, flush=True),
            )
            for part in parts:
                figures.update(PARTS[part](given))
    figures["duration_s"] = round(time.monotonic() - began)
    return figures


if __name__ == "__main__":
    sys.exit(main())
