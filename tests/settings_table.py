"""The tables of variables in docs/, written from the constants that the code reads.

`python tests/settings_table.py` puts them into the pages anew.
"""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

CHECKOUT = Path(__file__).parent.parent
TABLES = {
    "docs/agent.md": "agent/quayscope/agent/settings.py",
    "docs/helper.md": "agent/quayscope/relay/settings.py",
}
"""Each page that has a table, and the module whose constants stand in it."""
_TABLE = re.compile(r"(<!-- variables: .*? -->\n).*?(<!-- end of variables -->)", re.DOTALL)


def variables(module: Path) -> Iterator[tuple[str, str]]:
    """Yield each constant that names a variable, and what is written below it."""
    body = ast.parse(module.read_text()).body
    for statement, following in itertools.pairwise(body):
        if (
            isinstance(statement, ast.Assign)
            and isinstance(statement.value, ast.Constant)
            and str(statement.value.value).startswith("QUAYSCOPE_")
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
        ):
            yield str(statement.value.value), " ".join(str(following.value.value).split())


def with_table(page: str, module: Path) -> str:
    """Return the page with its table as the constants say."""
    rows = "".join(f"| `{name}` | {meaning} |\n" for name, meaning in variables(module))
    table = f"| variable | meaning |\n|---|---|\n{rows}"
    return _TABLE.sub(lambda found: found[1] + table + found[2], page)


if __name__ == "__main__":
    for name, source in TABLES.items():
        path = CHECKOUT / name
        path.write_text(with_table(path.read_text(), CHECKOUT / source))
