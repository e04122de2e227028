"""What the pages say of variables is what the code reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from settings_table import TABLES, variables, with_table


@pytest.mark.parametrize("page", TABLES)
def test_the_table_is_the_constants(checkout: Path, page: str) -> None:
    """Each variable stands in its page with its meaning; else run `python tests/settings_table.py`."""
    module = checkout / TABLES[page]
    assert len(list(variables(module))) >= 10
    written = (checkout / page).read_text()
    assert "<!-- variables: " in written
    assert with_table(written, module) == written
