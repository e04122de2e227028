"""The table of metrics in docs/resources.md, written from the names that the code sends.

`python tests/metrics_table.py` puts it into the page anew.
"""

from __future__ import annotations

import re
from pathlib import Path

from quayscope.sidecar.resources.names import INSTRUMENTS

PAGE = Path(__file__).parent.parent / "docs" / "resources.md"
_TABLE = re.compile(r"(<!-- metrics: .*? -->\n).*?(<!-- end of metrics -->)", re.DOTALL)


def with_table(page: str) -> str:
    """Return the page with its table as the code says."""
    rows = "".join(
        f"| `{one.name}` | {one.kind} | {one.unit} | {', '.join(map('`{}`'.format, one.attributes))} "
        f"| {one.source} |\n"
        for one in INSTRUMENTS.values()
    )
    table = f"| metric | kind | unit | attributes | read from |\n|---|---|---|---|---|\n{rows}"
    return _TABLE.sub(lambda found: found[1] + table + found[2], page)


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text()))
