"""The normaliser on plain text: rules, comments, broken and hostile input."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quayscope.profile.statement import comment_pairs, normalize, operation
from secret_statements import corpus, shows
from sql_comment import FINGERPRINT, encode_comment

SECRET = "pl4nted"
TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.mark.parametrize(
    ("sql", "text"),
    [
        ("SELECT  A,\n\tb  FROM T ;", "select a, b from t"),
        ('SELECT "A"."b" FROM "T" t', 'select "A"."b" from "T" t'),
        ("select 1, -2, +3, .5, 1., 1.5e-10, 0x1f, 0b101, 0o17, 1_000", "select " + ", ".join(["?"] * 10)),
        (
            f"select '{SECRET}', E'{SECRET}\\'{SECRET}', U&'{SECRET}', B'1', X'1F', N'{SECRET}'",
            "select ?, ?, ?, ?, ?, ?",
        ),
        (f"select $${SECRET}$$, $a$ {SECRET} $b$ ' $a$", "select ?, ?"),
        (f"select 'it''s {SECRET}'''", "select ?"),
        ("select $1, $22, :'name', %s, %(name)s", "select ?, ?, ?, ?, ?"),
        ("select a-1, a - -1, a*-1, (-1), a->-1", "select a - ?, a - ?, a * ?, (?), a -> ?"),
        ("select null, true, false", "select ?, ?, ?"),
        (
            "a is null and b is not null and c is true and d is not false",
            "a is null and b is not null and c is true and d is not false",
        ),
        ("create table t(a int not null default null)", "create table t(a int not null default ?)"),
        ("select a where b is %s and c is not %s", "select a where b is null and c is not null"),
        ("select '1'::int, '2'::double precision, '3'::timestamp(3) with time zone", "select ?, ?, ?"),
        ('select \'1\'::"My"."Type"[][], $1::numeric(10, 2)[]::text', "select ?, ?"),
        ("select a::text, (%s)::int, f(%s)::int", "select a::text, (?)::int, f(?)::int"),
        (
            "select array[1,2]::int[], array[a, 1], array[array[1,2],array[3]], array[(1,2)]",
            "select ?, array[a, ?], ?, ?",
        ),
        (
            "select a where b in (1,2,3) or b in ((1,2),(3,4)) or b in (select 1)",
            "select a where b in (?) or b in (?) or b in (select ?)",
        ),
        (
            "insert into t(a, b) values (1, now()), (2, now()), (3, now())",
            "insert into t(a, b) values (?, now())",
        ),
        ("insert into t values (1, now()), (2, other())", "insert into t values (?, now()), (?, other())"),
        ("select f(1, 2), count(*), count (*), g()", "select f(?, ?), count(*), count(*), g()"),
        (
            "select a%5, a %% 5, a <%% b, a ->> 'k', a ? 'k', a @> '{}'",
            "select a % ?, a % ?, a <% b, a ->> ?, a ? ?, a @> ?",
        ),
        ("select a /* x /* nested 'y */ z */ from b -- c\n where d = 1", "select a from b where d = ?"),
        ("SAVEPOINT s4f", "savepoint ?"),
        ('release savepoint "s4f"', "release savepoint ?"),
        ("select 'a' 'b'", "select ? ?"),
        ("", ""),
        (";;", ""),
        ("select a$b, _c, größe", "select a$b, _c, größe"),
        ("select * from a.b where c=d.e*2", "select * from a.b where c = d.e * ?"),
    ],
)
def test_rules(sql: str, text: str) -> None:
    """Each rule of the module's docstring, and a normalised text stays as it is."""
    found = normalize(sql)
    assert found.text == text
    assert (found.comment, found.truncated) == ({}, False)


def test_the_fingerprint_is_the_texts() -> None:
    """16 hex digits, equal for equal texts, different for different ones."""
    one, two = normalize("select 1"), normalize("SELECT  'x'")
    assert one == two
    assert len(one.fingerprint) == 16
    assert int(one.fingerprint, 16) >= 0
    assert normalize("select a").fingerprint != one.fingerprint


def test_our_comment_is_read() -> None:
    """Keys come back decoded, the fingerprint as it was given; doubled percent signs are accepted."""
    words = {"route": "GET /api/<path:x>", "trace": TRACE, "run": "r1%2=,'", "phase": "ü*/"}
    for doubled in (False, True):
        comment = encode_comment(parameters=doubled, **words)
        assert comment.count("*/") == 1
        found = normalize(comment + "select 1")
        assert (found.comment, found.text) == ({**words, "fp": FINGERPRINT}, "select ?")
    assert comment_pairs() == ""
    assert normalize(encode_comment(run="r") + "select 1").comment == {"run": "r", "fp": FINGERPRINT}
    assert normalize("/*quayscope:fp='0123'*/ select 1").comment == {}


def test_the_comment_has_the_documented_form() -> None:
    """The route's slash, space, angle brackets and colon stay readable; the rest is percent-encoded."""
    comment = encode_comment(route="GET /a/<int:b>", trace=TRACE, run="x y%", phase="p")
    pairs = f"route='GET /a/<int:b>',trace='{TRACE}',run='x y%25',phase='p'"
    assert comment == f"/*quayscope:fp='{FINGERPRINT}',{pairs}*/ "


@settings(deadline=None)
@given(st.text(max_size=300), st.text(max_size=20), st.booleans())
def test_any_words_make_a_comment(route: str, run: str, parameters: bool) -> None:
    """No value ends the comment early or raises, lone surrogates included; values are bounded."""
    comment = encode_comment(route=route, run=run, parameters=parameters)
    found = normalize((comment % () if parameters else comment) + "select 1")
    assert found.text == "select ?"
    assert found.comment.get("run", "") == run.encode("utf-8", "replace").decode()
    assert len(comment) < 10_000


def test_a_sqlcommenter_comment_is_read() -> None:
    """Route and trace id come from a trailing comment, where ours said nothing."""
    sql = f"select 1 /*controller='x',route='%2Fjoin%2F<a>',traceparent='00-{TRACE}-b7ad6b7169203331-01'*/"
    assert normalize(sql).comment == {"route": "/join/<a>", "trace": TRACE}
    ours = encode_comment(route="GET /b", trace="ab" * 16)
    assert normalize(ours + sql).comment == {"route": "GET /b", "trace": "ab" * 16, "fp": FINGERPRINT}


@pytest.mark.parametrize(
    "sql",
    [
        f"select 1 /* {SECRET} password='{SECRET}', run='{SECRET}' */",
        f"/*quayscope:trace='{SECRET}',user='{SECRET}'*/ select 1",
        f"select 1 /*traceparent='00-{SECRET}-x-01'*/",
        f"select '/*quayscope:run=''{SECRET}''*/' -- {SECRET}",
        f"select 1 /*quayscope:run='{SECRET}'*/",
        f"select 1 /* route='x' {SECRET}",
        f"select '{SECRET}",
        f"select E'{SECRET}\\' {SECRET}",
        f"select E'{SECRET}\\",
        f"select $x$ {SECRET} $y$ {SECRET}",
        f'select "{SECRET}',
        f"select 'a' || '{SECRET}''",
    ],
)
def test_what_is_said_in_literals_and_comments_stays_there(sql: str) -> None:
    """Neither foreign keys, comments at other places, nor cut literals are shown."""
    assert SECRET not in repr(normalize(sql))


@pytest.mark.parametrize("cut", ["'abc", "E'abc\\'", "$a$ abc", '"abc', "/* abc", "/* /* */"])
def test_cut_text_ends_where_it_was_cut(cut: str) -> None:
    """What follows the last whole token is left out and the statement marked."""
    found = normalize(f"select a, {cut}")
    assert found.truncated
    assert found.text in ("select a, ?", "select a,")


@settings(deadline=None, max_examples=400)
@given(st.text("ab1 '\"\\$%s(),[]:?-+*/.=Eeq\n\x01", max_size=60))
def test_no_text_raises(sql: str) -> None:
    """Any mixture of the characters that mean something is read, and the same way twice."""
    found = normalize(sql)
    assert found == normalize(sql)
    assert "\x01" not in found.text or '"' in sql


HOSTILE = {
    "arguments": "select f(" + "1," * 500_000 + "1)",
    "rows": "insert into t values " + "(1,'a',null)," * 80_000 + "(1,'b',2)",
    "expressions": "insert into t values " + "(1,now())," * 80_000 + "(1,now())",
    "open brackets": "(" * 1_000_000,
    "nested rows": "(" * 9_000 + "1,a" + ",a)" * 9_000,
    "nested arrays": "array[" * 100_000 + "1" + "]" * 100_000,
    "open comments": "/* " * 300_000 + "*/",
    "comments": "/*quayscope:*/" * 60_000 + "select 1",
    "long key": "/*" + "a" * 1_000_000 + "*/",
    "keys": "/*quayscope:" + "a='" * 300_000 + "*/",
    "parameters": "%(" * 500_000,
    "blanks": "in (1" + " " * 1_000_000 + "x",
    "quotes": "in (1,'" + "''" * 500_000,
    "escapes": "E'" + "\\'" * 500_000,
    "tags": "$a$" * 300_001,
    "words": "$a" * 500_000,
    "casts": "1" + "::a" * 300_000,
    "signs": "select " + "- " * 400_000 + "1",
    "operators": ":" * 1_000_000,
    "numbers": "1e" * 500_000,
    "long identifier": "a" * 1_000_000,
    "no setting": "set " + "1 " * 500_000,
    "no role's setting": "alter role " + "1 " * 500_000,
    "a setting's values": "set a = " + "x, " * 300_000,
    "copies": "copy stdout;" * 80_000,
    "quotes behind backslashes": r"select 'x\'' " * 70_000 + "'",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_takes_linear_time(name: str) -> None:
    """A megabyte made to be slow is read in under a second of CPU, to a short text."""
    started = time.process_time()
    found = normalize(HOSTILE[name])
    assert time.process_time() - started < 1
    assert len(found.text) <= 8_000


def test_no_secret_of_the_corpus_is_shown() -> None:
    """2,000 statements with a secret in literals, comments, blocks, rows, settings, many of them broken."""
    count = 0
    for text, secret in corpus():
        found = normalize(text)
        assert not shows(repr((found.text, found.comment)), secret), text
        count += bool(found.text)
    assert count > 1_900


def test_a_text_that_is_read_two_ways_ends_where_they_part() -> None:
    """`standard_conforming_strings` is believed to be on until the rest says that it was off."""
    assert normalize(r"select a where b = 'x\' and c = '1'").text == "select a where b = ? and c = ?"
    off = normalize(r"select a where b = 'x\' secret' and c = 'y'")
    assert (off.text, off.truncated) == ("select a where b = ?", True)
    assert normalize(r"select a like 'x' escape '\' and b").text == "select a like ? escape ? and b"


@pytest.mark.parametrize(
    ("sql", "text"),
    [
        ("set a.b to x, 'y'; select 1", "set a.b to ?; select ?"),
        ("SET LOCAL a = on", "set local a = ?"),
        ("alter role r set a = x", "alter role r set a = ?"),
        ("set transaction isolation level serializable", "set transaction isolation level serializable"),
        ("update t set a = b, c = 1", "update t set a = b, c = ?"),
        ("copy t (a) from stdin", "copy t(a) from stdin"),
        ("copy t from 'file'; select a", "copy t from ?; select a"),
    ],
)
def test_settings_and_copied_rows(sql: str, text: str) -> None:
    """A setting's value needs no quotes, nor do the rows that a script has behind COPY."""
    found = normalize(sql)
    assert (found.text, found.truncated) == (text, False)
    assert normalize("copy t from stdin;\n1\tx\n\\.\n").truncated


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("SELECT", "SELECT"),
        ("SELECT quay.users", "SELECT quay.users"),
        ("SELECT a FROM b WHERE c = 'x'", "SELECT a"),
        ("'secret'", "statement"),
        ("$$secret$$", "statement"),
        ("12345", "statement"),
    ],
)
def test_a_spans_name_is_no_statement(name: str, kept: str) -> None:
    """A short plain name stays; of a statement the words stay that it begins with, if it begins with any."""
    assert operation(name) == kept
