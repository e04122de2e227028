"""Templates and what the real psycopg2 and Postgres make of them have one text and fingerprint."""

from __future__ import annotations

import datetime
import decimal
import uuid
from collections.abc import Iterator
from typing import Any

import psycopg2
import psycopg2.extensions
import psycopg2.extras
import pytest

from quayscope.profile.statement import normalize
from sql_comment import FINGERPRINT, encode_comment
from unit.profile.own_postgres import own_postgres

SECRET = "pl4nted"
WHEN = datetime.datetime(2026, 8, 1, 12, 30, tzinfo=datetime.UTC)

VALUES: list[Any] = [
    f"{SECRET}",
    f"{SECRET} it's",
    f"{SECRET}\\' OR 1=1 --",
    f"\\{SECRET}\n/* {SECRET} */",
    f'"{SECRET}" $$ {SECRET} $1 %s %% ?',
    "",
    0,
    -5,
    10**20,
    1.5,
    -2.5e-30,
    float("nan"),
    float("-inf"),
    decimal.Decimal("-12.50"),
    decimal.Decimal("NaN"),
    None,
    True,
    False,
    WHEN,
    WHEN.replace(tzinfo=None),
    WHEN.date(),
    WHEN.timetz(),
    WHEN.time(),
    datetime.timedelta(days=-3, seconds=4),
    psycopg2.Binary(f"{SECRET}\x00'".encode()),
    uuid.UUID(int=7),
    psycopg2.extras.Json({"k": f"it's {SECRET}"}),
    [1, -2, None],
    [f"{SECRET}'", "\\"],
    [],
    [[1, 2], [3, 4]],
    [WHEN],
    [(1, SECRET), (2, "x")],
    psycopg2.extras.Inet("10.0.0.1/8"),
]

TEMPLATES: list[tuple[str, Any]] = [
    ("SELECT * FROM t WHERE id IN %s AND x = %s", ((1, 2, 3), SECRET)),
    ("SELECT * FROM t WHERE id IN (%s, %s, %s)", (1, 2, SECRET)),
    ("SELECT * FROM t WHERE id IN (%s)", (1,)),
    ("SELECT * FROM t WHERE (a, b) IN %s", (((1, "x"), (2, SECRET)),)),
    ("SELECT * FROM t WHERE id = ANY(%s)", ([1, 2],)),
    ("SELECT * FROM t WHERE id = ANY(%(ids)s::int[]) LIMIT %(n)s", {"ids": [1], "n": 5}),
    ('SELECT "t1"."Id" FROM "Tag" AS "t1" WHERE ("t1"."name" = %s) LIMIT %s OFFSET %s', (SECRET, 1, 0)),
    ('SELECT 1 FROM "a" WHERE ("a"."b" IS %s) AND ("a"."c" IS NOT %s)', (None, None)),
    ("INSERT INTO t (a, b, c) VALUES (%s, %s, now()) RETURNING id", (SECRET, -1)),
    ("INSERT INTO t (a, b) VALUES (%s, %s), (%s, %s)", (SECRET, None, "x", True)),
    ("UPDATE t SET a = a - %s, b = %s, c = NULL WHERE d IS NOT NULL AND e = -%s", (-3, SECRET, 4)),
    ("SELECT a %% 7, b LIKE 'x%%', c <%% %s, %s||'%%' FROM t", ("a", SECRET)),
    (
        "SELECT * FROM t WHERE a->>'k' = %s AND b @> %s AND c ? 'k'",
        ("v", psycopg2.extras.Json({"a": SECRET})),
    ),
    ("SELECT f(%s, %s), coalesce(x, %s), CAST(%s AS text)", (1, -2, None, SECRET)),
    ("SELECT a[%s], b[1:%s] FROM t WHERE c BETWEEN %s AND %s", (1, 2, WHEN, WHEN)),
    ("SELECT %s::timestamptz - interval '3 days', date %s", (WHEN, "2026-01-01")),
    ("SELECT CASE WHEN a=%s THEN %s ELSE %s END", (1, SECRET, -1)),
    ("SELECT x FROM t WHERE a=%s-- a comment with 'quotes\n AND b=%s /* 'more' */", (1, SECRET)),
    ("WITH a AS (SELECT %s AS b) SELECT * FROM a WHERE EXISTS (SELECT 1 FROM c WHERE d = %s);", (1, SECRET)),
    ("SELECT * FROM t WHERE a=%(a)s AND b=%(b)s AND a2=%(a)s", {"a": SECRET, "b": 1}),
    ("SAVEPOINT s", None),
    ("DELETE FROM t WHERE a < %s AND NOT b AND c IS TRUE", (WHEN,)),
]


@pytest.fixture(scope="module")
def connection() -> Iterator[psycopg2.extensions.connection]:
    """A connection to a Postgres that runs for these tests."""
    with own_postgres() as dsn:
        made = psycopg2.connect(dsn)
        made.autocommit = True
        psycopg2.extras.register_uuid(conn_or_curs=made)  # type: ignore[no-untyped-call] # its stub is bare
        yield made
        made.close()


def _rendered(connection: psycopg2.extensions.connection, template: str, parameters: Any) -> str:
    with connection.cursor() as cursor:
        made = cursor.mogrify(template, parameters)
    return made.decode() if isinstance(made, bytes) else str(made)


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize(
    "template",
    [
        "SELECT * FROM t WHERE a = %s AND b = 'x'",
        "SELECT f(%s,%s), -%s",
        "INSERT INTO t VALUES (%s, %s)",
        "SELECT * FROM t WHERE a IN (%s, %s) ORDER BY b",
        "SELECT a -%s, b=%s::text FROM t",
    ],
)
def test_every_type_of_value_renders_to_its_template(
    connection: psycopg2.extensions.connection, template: str, value: Any
) -> None:
    """Whatever psycopg2 writes for a value, the statement is its template's and the value is gone."""
    text = _rendered(connection, template, (value,) * template.count("%s"))
    expected, got = normalize(template), normalize(text)
    assert (got.text, got.fingerprint) == (expected.text, expected.fingerprint)
    assert not got.truncated
    assert SECRET not in got.text


@pytest.mark.parametrize(("template", "parameters"), TEMPLATES)
def test_templates_and_renderings_have_one_fingerprint(
    connection: psycopg2.extensions.connection, template: str, parameters: Any
) -> None:
    """Lists, rows, casts, signs, arrays and escapes fold to the same text on both sides."""
    expected, got = normalize(template), normalize(_rendered(connection, template, parameters))
    assert got == expected
    assert SECRET not in repr(got)


@pytest.mark.parametrize("rows", [1, 2, 700, 3000])
def test_bulk_inserts_of_any_size_are_one_statement(
    connection: psycopg2.extensions.connection, rows: int
) -> None:
    """`execute_values` and a template of a thousand rows make the text that one row makes."""
    one = normalize("INSERT INTO t (a, b, c) VALUES %s")
    row = (SECRET, -1, None)
    template = "INSERT INTO t (a, b, c) VALUES " + ", ".join(["(%s, %s, %s)"] * rows)
    assert normalize(template) == one
    assert normalize(_rendered(connection, template, row * rows)) == one
    many = "SELECT * FROM t WHERE a IN (" + ", ".join(["%s"] * rows) + ")"
    rendered = _rendered(connection, many, tuple(f"{SECRET}'{index}" for index in range(rows)))
    assert normalize(many) == normalize(rendered) == normalize("select * from t where a in %s")


def test_postgres_shows_the_comment_that_psycopg2_was_given(
    connection: psycopg2.extensions.connection,
) -> None:
    """The comment comes through psycopg2 with and without parameters, and is read from Postgres' own text."""
    words: Any = {"route": "GET /api/v1/<path:x>", "trace": "ab" * 16, "run": "50% of 'it'", "phase": "a*/b"}
    query = "SELECT query FROM pg_stat_activity WHERE pid = pg_backend_pid() AND query <> "
    with connection.cursor() as cursor:
        cursor.execute(encode_comment(**words, parameters=True) + query + "%s", (SECRET,))
        with_parameters = cursor.fetchall()[0][0]
        cursor.execute(encode_comment(**words, parameters=False) + query + f"'{SECRET}'")
        without = cursor.fetchall()[0][0]
    assert with_parameters == without
    statement = normalize(without)
    assert statement.comment == {**words, "fp": FINGERPRINT}
    assert statement.fingerprint == normalize(query + "%s").fingerprint
    assert SECRET not in repr(statement)


def test_a_text_cut_by_postgres_shows_no_part_of_a_literal(
    connection: psycopg2.extensions.connection,
) -> None:
    """Cut at any byte, as pg_stat_activity cuts at 1,024, no part of a literal is shown."""
    values = [f"{SECRET}{'é' * 3}'{SECRET}", f"\\{SECRET}'{SECRET}\\", psycopg2.Binary(SECRET.encode())]
    text = _rendered(connection, "SELECT %s, f(%s) FROM t WHERE a IN (%s, %s)", [*values, values[0]])
    for end in range(len(text)):
        shown = normalize(text[:end]).text
        assert SECRET[:3] not in shown
        assert "é" not in shown
