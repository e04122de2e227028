"""What all tests share: the `--full` switch and the paths of the checkout."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from open_folders import made_open
from plain_user import PlainPython, find_plain_python


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--full",
        action="store_true",
        help="run at the size the promises are made for, not the size that fits CI",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is of the full size alone, which takes as long as it takes."""
    if config.getoption("--full"):
        for item in items:
            item.add_marker(pytest.mark.timeout(0))
    else:
        left = [item for item in items if item.get_closest_marker("full_size") is not None]
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if item not in set(left)]


@pytest.fixture(scope="session")
def full(request: pytest.FixtureRequest) -> bool:
    """Whether to run at full size."""
    return bool(request.config.getoption("--full"))


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The root of the checkout."""
    return Path(__file__).parent.parent


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may pass through; pytest's own are closed to others."""
    with made_open("open") as folder:
        yield folder


@pytest.fixture(scope="session")
def plain_python(checkout: Path) -> Iterator[PlainPython]:
    """An interpreter that a plain user can run, with our packages."""
    with made_open("plain") as spare:
        yield find_plain_python(checkout, spare)
