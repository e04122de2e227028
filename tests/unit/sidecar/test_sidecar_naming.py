"""Statements named by their form: the same name as the normaliser gives, and a request's own comment."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quayscope.sidecar.postgres import naming
from quayscope.sidecar.postgres.naming import UNNAMED, Namer
from quayscope.sidecar.statements import Described, describe

_PIECES = (
    *(
        "SELECT ",
        "FROM ",
        "t",
        "t1",
        '"t 1"',
        '"a',
        "'",
        "''",
        "'x'",
        "'it''s 5'",
        "E'\\''",
        "5",
        " 7 ",
        "-3",
    ),
    *(
        "1.5",
        ".5",
        "1e5",
        "0x1F",
        "x2",
        "$1",
        "$$",
        "$a$",
        "/*",
        "*/",
        "-- 4",
        "\n",
        "(1, 2)",
        "::int",
        '"',
        "U&'",
    ),
    *(
        "/* 4 */",
        "a.b",
        "a.1",
        "=",
        "IN (",
        ")",
        ",",
        ";",
        "B'01'",
        "é",
        "INTERVAL '1 day'",
        "BETWEEN 1 AND 2",
    ),
)


@given(
    st.lists(st.sampled_from(_PIECES), max_size=12),
    st.integers(0, 10**6),
    st.sampled_from(("", " ", "'")),
)
def test_texts_of_one_form_have_one_name(pieces: list[str], number: int, joint: str) -> None:
    """A text that is named by another's form is named as the normaliser would name it."""
    namer = Namer()
    text = joint.join(pieces)
    other = re.sub(r"[0-9]+", str(number), text)
    third = re.sub(r"'[^']*'", f"'{number} x'", text)
    for one in (text, other, third, text):
        assert namer.describe(one) == describe(one)


def test_a_form_is_normalised_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Statements that differ in their literals ask the normaliser once; identifiers tell forms apart."""
    asked = []

    def counted(text: str) -> Described:
        asked.append(text)
        return describe(text)

    monkeypatch.setattr(naming, "describe", counted)
    namer = Namer()
    names = {namer.describe(f"SELECT * FROM t WHERE id = {n} AND s = 'v{n}'").frame for n in range(50)}
    assert len(names) == len(asked) == 1
    assert namer.describe('SELECT "a 1"').frame != namer.describe('SELECT "a 2"').frame
    assert namer.describe("SELECT 1 FROM t1").frame != namer.describe("SELECT 1 FROM t2").frame


def test_the_comment_is_the_requests() -> None:
    """A statement of a form that is known still carries the request of its own comment."""
    namer = Namer()
    for trace in ("a" * 32, "b" * 32):
        text = f"/*traceparent='00-{trace}-0123456789abcdef-01',route='%2Fv1%2Frepo'*/ SELECT 1"
        assert namer.describe(text) == describe(text)


def test_beyond_the_budget() -> None:
    """New texts beyond a second's budget have no name and are counted; known and later ones have."""
    namer = Namer()
    assert namer.describe("") == describe("")
    known = namer.describe("SELECT known")
    for n in range(naming.BUDGET):
        namer.describe(f"SELECT c{n}")
    assert namer.describe("SELECT something_else") == UNNAMED
    assert namer.undescribed > 0
    assert namer.describe("SELECT c0") != UNNAMED
    namer.next_second()
    assert namer.describe("SELECT something_else") != UNNAMED
    assert namer.describe("SELECT known") == known
