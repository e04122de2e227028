"""What of a statement goes into a sample."""

from __future__ import annotations

import pytest

from quayscope.profile.statement import normalize
from quayscope.sidecar.postgres.naming import Namer
from quayscope.sidecar.statements import LONGEST_DESCRIBED, NO_STATEMENT, describe
from sql_comment import encode_comment

_TRACE = "0123456789abcdef0123456789abcdef"


def test_comment_becomes_the_request() -> None:
    """Route, run, phase and trace come from the comment at the front, the frame from what follows."""
    comment = encode_comment(route="GET /api/v1/repository/<path>", trace=_TRACE, run="r 1", phase="burst")
    described = describe(comment + "SELECT * FROM tag WHERE id = 7")
    assert described.frame is not None
    assert described.frame.kind == "sql"
    assert described.frame.function == normalize("SELECT * FROM tag WHERE id = 7").text
    assert (described.endpoint, described.run, described.phase) == (
        "GET /api/v1/repository/<path>",
        "r 1",
        "burst",
    )
    assert described.trace_id == _TRACE
    assert described.has_request


@pytest.mark.parametrize(
    "text",
    [
        "SELECT 'secret'",
        "/* a */ SELECT 'secret'",
        "/* a /* nested */ b */ SELECT 'secret'",
        "/* 'secret' */ SELECT 1",
        "SELECT 'secret",
        "/* never ends 'secret'",
        "/*/ SELECT 'secret'",
    ],
)
def test_literals_end_here(text: str) -> None:
    """No literal and no foreign comment is left, however the text is broken; the split changes nothing."""
    described = describe(text)
    assert "secret" not in repr(described)
    assert (described.frame.function if described.frame else "") == normalize(text).text
    assert not described.has_request


@pytest.mark.parametrize("text", [None, "", "  ", "/* only a comment */"])
def test_no_statement(text: str | None) -> None:
    """Nothing to run is no statement."""
    assert describe(text).frame is None
    assert describe(None) is NO_STATEMENT


def test_bulk_insert_is_bounded() -> None:
    """A statement of megabytes is described by its head."""
    text = "INSERT INTO t VALUES " + ", ".join(["(1, 'secret')"] * 100_000)
    assert len(text) > 60 * LONGEST_DESCRIBED
    described = describe(text)
    assert described.frame is not None
    assert described.frame.function.startswith("insert into t values")
    assert len(described.frame.function) < 200


def test_a_span_goes_with_its_own_trace() -> None:
    """The span of a traceparent is shown where that trace is; ours, of another trace, comes without one."""
    span = "b7ad6b7169203331"
    sql = f"SELECT 1 /*route='%2Ftags',traceparent='00-{_TRACE}-{span}-01'*/"
    assert (describe(sql).trace_id, describe(sql).span_id) == (_TRACE, span)
    ours = describe(encode_comment(trace="ab" * 16) + sql)
    assert (ours.trace_id, ours.span_id) == ("ab" * 16, "")
    named = Namer().describe(encode_comment(trace="ab" * 16) + sql)
    assert (named.trace_id, named.span_id) == ("ab" * 16, "")
    assert Namer().describe(sql).span_id == span
    assert describe(f"SELECT $$traceparent='00-{_TRACE}-{span}-01'$$").span_id == ""
