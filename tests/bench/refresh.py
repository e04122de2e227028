"""Puts the benchmarks' tables into a document, between its markers: `python -m bench.refresh`.

A table stands between `<!-- bench:NAME -->` and `<!-- /bench:NAME -->`, and comes from build/bench/NAME.json.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from bench.agent.report import REPORT as AGENT
from bench.postgres.report import REPORT as POSTGRES
from bench.sidecar.report import REPORT as SIDECAR

__all__ = ["refresh"]

TABLES: Mapping[str, Callable[[Mapping[str, object]], str]] = {
    "agent": AGENT.table,
    "sidecar": SIDECAR.table,
    "postgres": POSTGRES.table,
}


def refresh(document: str, name: str, table: str) -> str:
    """Return the document with this table between the markers of `name`; raises ValueError without them."""
    begin, end = f"<!-- bench:{name} -->", f"<!-- /bench:{name} -->"
    pattern = re.compile(f"({re.escape(begin)}\n).*?({re.escape(end)})", re.DOTALL)
    found, count = pattern.subn(lambda match: f"{match[1]}{table}\n{match[2]}", document)
    if count != 1:
        raise ValueError(f"the document must have {begin} and {end} once, each on a line of its own")
    return found


def main() -> int:
    """Refresh the document from all figures that there are; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.refresh", description=__doc__)
    parser.add_argument("--document", type=Path, default=Path("docs/benchmarks.md"))
    parser.add_argument("--figures", type=Path, default=Path("build/bench"))
    given = parser.parse_args()
    text = given.document.read_text()
    for name, table in TABLES.items():
        figures = given.figures / f"{name}.json"
        if not figures.exists():
            print(f"{figures} is missing; next: make bench-{name}", file=sys.stderr)
            return 3
        text = refresh(text, name, table(json.loads(figures.read_text())))
    given.document.write_text(text)
    print(f"refreshed {given.document}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
