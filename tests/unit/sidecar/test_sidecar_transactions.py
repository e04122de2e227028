"""Whose request a statement without a comment serves, by its transaction."""

from __future__ import annotations

import pytest

from quayscope.sidecar.postgres.join import is_same_transaction
from quayscope.sidecar.postgres.naming import Namer
from quayscope.sidecar.postgres.slots import Glance
from quayscope.sidecar.postgres.transactions import Transactions, left_over
from quayscope.sidecar.statements import NO_STATEMENT
from quayscope.sidecar.targets import CLIENT_BACKEND

COMMENT = "/*quayscope:fp='0123456789abcdef',route='GET /a',trace='0af7651916cd43dd8448eb211c80319c'*/"
TEXT = f"{COMMENT} SELECT 1".encode()


def behind(activity: bytes, before: bytes = TEXT) -> bytes:
    """Return what lies behind an activity that was written over another, up to the next zero."""
    return before[len(activity) + 1 :].partition(b"\0")[0]


@pytest.mark.parametrize("end", [b"COMMIT", b"ROLLBACK", b"END", b"ABORT", b"commit"])
def test_the_comment_before_is_left_behind_an_end(end: bytes) -> None:
    """What ends a transaction shows the comment of the statement before."""
    assert left_over(end, behind(end)) == COMMENT


@pytest.mark.parametrize(
    ("activity", "rest"),
    [
        (b"BEGIN", behind(b"BEGIN")),  # the transaction before
        (b"SELECT 1", behind(b"SELECT 1")),
        (b"COMMIT", b""),
        (b"COMMIT", b" " + behind(b"COMMIT")),
        # A statement without a comment stood in between.
        (b"COMMIT", b"1"),
        (b"COMMIT", b"ws WHERE note = 'quayscope:fp='0123456789abcdef',route='GET /a'*/'"),
        # A comment that the server has cut.
        (b"COMMIT", behind(b"COMMIT")[:60]),
        (b"COMMIT", behind(b"COMMIT", TEXT.replace(b"0123456789abcdef", b"0123456789ABCDEF"))),
    ],
)
def test_what_does_not_fit_is_nobodys(activity: bytes, rest: bytes) -> None:
    """Anything but the rest of our comment, from just that character on, tells nothing."""
    assert left_over(activity, rest) == ""


def test_a_transaction_is_one_requests() -> None:
    """The last comment seen in a transaction holds to its end, and not beyond; own comments come first."""
    seen = Transactions()
    other = COMMENT.replace("/a", "/b")
    assert seen.comment(1, 500, "FETCH 5 FROM c", "") == ""
    assert seen.comment(1, 500, f"{COMMENT} DECLARE c CURSOR FOR SELECT 1", "") == ""
    assert seen.comment(1, 500, "FETCH 5 FROM c", "") == COMMENT
    assert seen.comment(2, 500, "FETCH 5 FROM c", "") == ""
    assert seen.comment(1, 500, f"{other} SELECT 1", "") == ""
    assert seen.comment(1, 500, "COMMIT", COMMENT) == other
    assert seen.comment(1, 501, "SELECT 1", "") == ""
    assert seen.comment(1, 501, "COMMIT", COMMENT) == COMMENT
    # Outside of a transaction there is none to inherit from.
    assert seen.comment(1, 0, f"{COMMENT} SELECT 1", "") == ""
    assert seen.comment(1, 0, "SELECT 2", "") == ""
    seen.comment(1, 502, f"{COMMENT} SELECT 1", "")
    seen.forget(1)
    assert seen.comment(1, 502, "SELECT 2", "") == ""


def test_what_is_inherited_is_marked() -> None:
    """A statement gets another's request with the mark, keeps its own without it, and none of none."""
    namer = Namer()
    commit = namer.describe("COMMIT")
    inherited = namer.inherit(commit, COMMENT)
    assert (inherited.frame, inherited.endpoint, inherited.inherited) == (commit.frame, "GET /a", True)
    assert inherited.trace_id == "0af7651916cd43dd8448eb211c80319c"
    own = namer.describe(TEXT.decode())
    assert namer.inherit(own, COMMENT.replace("/a", "/b")) is own
    assert not own.inherited
    assert namer.inherit(NO_STATEMENT, "BEGIN") is NO_STATEMENT
    assert namer.inherit(NO_STATEMENT, COMMENT)[:2] == (None, "GET /a")


@pytest.mark.parametrize(
    ("state", "began_ns", "same"),
    [
        ("active", 1_000_000, True),
        ("idle in transaction", 1_000_000, True),
        ("idle in transaction (aborted)", 1_000_000, True),
        ("idle", 1_000_000, False),
        ("disabled", 1_000_000, False),
        ("active", 0, False),
        ("active", 4_999_999, False),  # it may have begun within the microsecond
        ("active", 9_000_000, False),
    ],
)
def test_a_transaction_that_was_open_before_is_the_same(state: str, began_ns: int, same: bool) -> None:
    """One that began before a moment and is open still was open at that moment."""
    seen = Glance(CLIENT_BACKEND, state, 0, 0, b"SELECT 1", False, began_ns)
    assert is_same_transaction(seen, at_ns=5_000_000, now_ns=6_000_000, error_ns=1_000) is same
