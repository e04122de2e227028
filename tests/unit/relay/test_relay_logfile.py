"""The helper's log file: one line a record, bounded, and never a reason to fail."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from quayscope.relay.logfile import MAX_BYTES, LogFile


@pytest.fixture
def log(tmp_path: Path) -> Iterator[logging.Logger]:
    """A logger that writes to `log` under the test's folder."""
    logger = logging.Logger("test")
    handler = LogFile(str(tmp_path / "log"))
    logger.addHandler(handler)
    yield logger
    handler.close()


def test_a_record_is_a_line(log: logging.Logger, tmp_path: Path) -> None:
    """Time, level, message and fields; what a peer sent makes no second line; errors say where."""
    log.info("serving %s", "well", extra={"socket": "/s"})
    log.warning("odd\nfaked line", extra={"reason": "a\x1b[31m\nb"})
    log.debug("not this")
    try:
        os.environ["QUAYSCOPE_NOTHING"]
    except KeyError:
        log.exception("fault")
    first, second, third = (tmp_path / "log").read_text().splitlines()
    assert first.endswith("Z info serving well socket=/s")
    assert second.endswith(r'warning "odd\nfaked line" reason="a\u001b[31m\nb"')
    assert "error fault error=KeyError: 'QUAYSCOPE_NOTHING' in " in third
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600


def test_it_is_bounded(log: logging.Logger, tmp_path: Path) -> None:
    """A full file begins anew and says so; the newest line is always there; long lines are cut."""
    for number in range(3_000):
        log.info("line %d %s", number, "x" * 200)
        assert (tmp_path / "log").stat().st_size <= MAX_BYTES
    lines = (tmp_path / "log").read_text().splitlines()
    assert "earlier lines are gone" in lines[0]
    assert "line 2999" in lines[-1]
    log.info("y" * 100_000)
    assert len((tmp_path / "log").read_text().splitlines()[-1]) < 5_000


def test_a_record_that_cannot_be_written_costs_nothing(log: logging.Logger, tmp_path: Path) -> None:
    """Arguments that do not fit, and a folder that is not there, raise nothing."""
    log.info("%d", "no number")
    log.info("after")
    assert "after" in (tmp_path / "log").read_text()
    elsewhere = logging.Logger("elsewhere")
    elsewhere.addHandler(LogFile(str(tmp_path / "none" / "log")))
    elsewhere.info("nobody hears")
    assert not (tmp_path / "none").exists()
