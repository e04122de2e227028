"""The command line of a benchmark: which parts, how long, where the figures go, what the exit code says."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Collection
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from bench.bounded import Report, surroundings

__all__ = ["Asked", "command"]


class Asked(NamedTuple):
    """What was asked for, and a folder that other users may pass through. `say` tells of the progress."""

    parts: list[str]
    folder: Path
    seconds: float
    pairs: int
    quick: bool
    say: Callable[[str], None]


def command(
    name: str,
    about: str,
    parts: Collection[str],
    report: Report,
    measure: Callable[[Asked], dict[str, object]],
    *,
    seconds: float,
    pairs: int = 12,
) -> int:
    """Run the benchmark `name` as asked on the command line; returns the exit code.

    0 done, 1 a bound was missed, 3 it could not be measured, 130 interrupted. `seconds` is the length of a
    part, `pairs` the number of pairs, where none is given.
    """
    output = Path(f"build/bench/{name}.json")
    parser = argparse.ArgumentParser(prog=f"python -m bench.{name}", description=about)
    parser.add_argument(
        "--seconds", type=float, default=seconds, help=f"length of a part (default {seconds:g})"
    )
    parser.add_argument("--pairs", type=int, default=pairs, help=f"pairs of rounds (default {pairs})")
    parser.add_argument("--quick", action="store_true", help="as little as shows that it works: no verdict")
    parser.add_argument(
        "--parts", default=",".join(parts), help=f"which ones, comma-separated: {', '.join(parts)}"
    )
    parser.add_argument("--output", type=Path, default=output, help=f"file for the figures ({output})")
    given = parser.parse_args()
    wanted = [part for part in given.parts.split(",") if part]
    unknown = [part for part in wanted if part not in parts]
    if unknown:
        parser.error(f"no such part: {', '.join(unknown)}; there are {', '.join(parts)}")
    signal.signal(signal.SIGTERM, _end)
    try:
        figures = _measured(given, wanted, measure)
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130
    except Exception as error:  # noqa: BLE001 - whatever it was, no figure may be taken for a verdict
        traceback.print_exception(error)
        return 3
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(json.dumps(figures, indent=1, sort_keys=True) + "\n")
    print(report.table(figures))
    print(f"\nwritten to {given.output}")
    wrong = [] if given.quick else report.missed(figures)
    for line in wrong:
        print(f"missed: {line}")
    return 1 if wrong else 0


def _end(_: int, __: FrameType | None) -> None:
    raise KeyboardInterrupt


def _measured(
    given: argparse.Namespace, parts: list[str], measure: Callable[[Asked], dict[str, object]]
) -> dict[str, object]:
    figures = surroundings()
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:5.0f} s  {text}", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory(prefix="quayscope-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o711)  # Postgres runs as another user when we are root
        figures |= measure(Asked(parts, folder, given.seconds, given.pairs, given.quick, say))
    figures["duration_s"] = round(time.monotonic() - began)
    return figures
