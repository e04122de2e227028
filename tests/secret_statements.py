"""Statements with a secret where people put them, well-formed and broken: for tests that none leaves."""

from __future__ import annotations

import random
from collections.abc import Iterator

__all__ = ["corpus", "shows"]

# @ stands for the secret, # for a number that is one.
_TEMPLATES = (
    # Literals of every kind.
    "SELECT * FROM users WHERE token = '@' AND id = #",
    "SELECT * FROM users WHERE name = 'it''s @' OR name = E'it\\'s @\\\\' OR note = U&'\\0041@'",
    "INSERT INTO users (name, hash, blob) VALUES ('@', E'\\\\x@', B'0101'), ('@', '@', X'1F')",
    "UPDATE robots SET token='@', salt = 'x@y' WHERE token <> '@'::varchar(64) RETURNING id",
    "SELECT $$@$$, $a$ @ ' $b$ @ $a$, $été$@$été$",
    "SELECT '{\"password\": \"@\"}'::jsonb -> '@' ->> 'k'",
    "SELECT xmlparse(document '<a b=\"@\">@</a>'), interval '1 day', date '@'",
    "DELETE FROM t WHERE a IN ('@', '@', 'x') AND b = ANY ('{@,\"@\"}'::text[]) AND c LIKE '%@!%' ESCAPE '!'",
    "SELECT a FROM t WHERE p LIKE '@\\%' ESCAPE '\\' AND q = '@'",
    "SELECT f(a, '@', # , -#, +#.5e3, 0x1f) FROM t LIMIT # OFFSET #",
    "SELECT 'a' '@'\n'@' , n'@' , \"column\" FROM \"Table\"",
    # Users, settings, programs.
    "CREATE ROLE app LOGIN PASSWORD '@' VALID UNTIL '2030-01-01'",
    "ALTER USER app WITH ENCRYPTED PASSWORD 'SCRAM-SHA-256$4096:@'",
    "SET app.api_key = @",
    "SET SESSION app.tokens TO @, '@', \"@\"; SELECT # FROM t",
    "SET LOCAL app.api_key='@'; SELECT 1",
    "ALTER ROLE app SET app.api_key TO @",
    "SELECT set_config('app.key', '@', false)",
    "CREATE SERVER s FOREIGN DATA WRAPPER w OPTIONS (host 'h', password '@')",
    "CREATE SUBSCRIPTION s CONNECTION 'host=h user=u password=@' PUBLICATION p",
    "SELECT dblink('postgresql://u:@@h/db', 'select ''@''')",
    "NOTIFY channel, '@'",
    "COMMENT ON TABLE t IS '@'",
    "PREPARE p AS SELECT * FROM t WHERE a = '@'; EXECUTE p('@', #)",
    "DECLARE c CURSOR FOR SELECT * FROM t WHERE a = '@'",
    'SAVEPOINT "@"',
    "DO $$ BEGIN PERFORM set('@'); END $$",
    "DO LANGUAGE plpgsql $body$ BEGIN EXECUTE 'select ''@''' ; END $body$",
    "DO 'BEGIN PERFORM f(''@''); END'",
    "CREATE FUNCTION f() RETURNS int AS $f$ SELECT '@'; -- @\n$f$ LANGUAGE sql",
    "COPY t (a, b) FROM stdin;\n#\t@\n@\t\\N\n\\.\n",
    "COPY t FROM STDIN WITH (FORMAT csv, NULL '@');\n@,\"@\"\n\\.\n",
    "COPY (SELECT '@') TO PROGRAM 'curl -H @'",
    # Comments.
    "/* @ */ SELECT 1",
    "SELECT 1 -- @ '@'\n, 2 /* password='@' /* nested @ */ @ */",
    "/*quayscope:fp='0123456789abcdef',route='GET /a',token='@'*/ SELECT '@'",
    "SELECT 1 /*controller='@',route='%2Fa',db_driver='@',traceparent='00-@-x-01'*/",
    "SELECT 1 --@",
    "/* route='x' */ /* user='@' */ SELECT a /* trace='@', fp='@' */",
)
# Here the cut itself would hide what is wrong: these are not cut.
_BROKEN = (
    "SELECT * FROM t WHERE name = 'O'@' AND x = '@'",
    "SELECT * FROM t WHERE name = 'it's @ and '@' too'",
    "SELECT * FROM t WHERE a = 'x\\' @ ' AND b = 'y'",
    "SELECT * FROM t WHERE a = 'x\\' @', b = 'y\\' @'",
    "SELECT * FROM t WHERE a = \u2018@\u2019",
    "SELECT * FROM t WHERE a = \u201c@\u201d AND b = `@`",
    "SELECT * FROM t WHERE a = '@",
    "SELECT * FROM t WHERE a = E'\\'@",
    "SELECT * FROM t WHERE a = $x$ @ $y$",
    'SELECT * FROM t WHERE a = "@',
    "SELECT /* @ /* */ 1, '@'",
    "SELECT 1 /* a */ @ */ '@'",
    "SELECT a$$@$$ FROM t",
    "SELECT 1\\gexec @",
    "SELEC '@' FRM WHERE (((",
    "INSERT INTO t VALUES ('@', '@'",
    "'@'",
    "SELECT 12@ FROM t",
)
_LETTERS = "bcdfghjkmpqvwxz"
_PIECE = 5


def _secret(rnd: random.Random) -> str:
    return "".join(rnd.choice(_LETTERS) + rnd.choice("0123456789") for _ in range(5))


def corpus(count: int = 2_000, seed: int = 7) -> Iterator[tuple[str, str]]:
    """Yield `count` statements, each with the secret in it: each template, then cut off or run together."""
    rnd = random.Random(seed)
    templates = _TEMPLATES + _BROKEN
    for number in range(count):
        secret = _secret(rnd)
        template = templates[number % len(templates)]
        text = template.replace("@", secret)
        text = text.replace("#", str(rnd.randrange(10**14, 10**15)))
        turn = number // len(templates)
        if turn % 4 == 1:
            # A line comment must stay one.
            space = rnd.choice((" ", "  ", "\t") if "--" in template else ("  ", "\n", "\t"))
            text = text.replace(" ", space).swapcase().replace(secret.swapcase(), secret)
        elif turn % 4 == 2 and template not in _BROKEN:
            text = text[: rnd.randrange(8, len(text) + 1)]
        elif turn % 4 == 3:
            text = f"SELECT a FROM b WHERE c = '{secret}';\n" + text
        yield text, secret


def shows(output: str, secret: str) -> bool:
    """Whether five characters of the secret that follow each other, or a planted number, are in `output`."""
    pieces = {secret[at : at + _PIECE] for at in range(len(secret) - _PIECE + 1)}
    lowered = output.lower()
    return any(piece in lowered for piece in pieces) or _long_number(lowered)


def _long_number(output: str) -> bool:
    run = 0
    for character in output:
        run = run + 1 if character.isdigit() else 0
        if run >= 14:
            return True
    return False
