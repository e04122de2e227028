"""The registry's weak spots, each behind a switch, and what a profile should show of each.

They are of the kinds that Quay had. `QUAYSCOPE_DEMO_WEAK` lists the ones that are on, comma-separated;
unset means all of them, `none` means none.

`n_plus_one`
    `GET /api/v1/repository` asks for each listed repository's newest tag and permissions one by one: two
    statements a repository. Off: one joined statement. The profile shows the endpoint stalled in many
    short runs of two statements, its workers' CPU in psycopg2 and in building those statements.
`missing_index`
    `GET /api/v1/repository/<namespace>/<repository>/logs` searches `logentry` by repository; the index
    was never created. Off: it is created with the tables. The profile shows Postgres's CPU in a
    sequential scan of one statement, and the worker stalled in it.
`row_lock`
    `GET /v2/<namespace>/<repository>/manifests/<manifest_ref>` counts the pull in the repository's
    counter row first and then, in the same transaction, sums up what the registry stores before it commits.
    Off: the count is committed at once, after the sum. The profile shows workers stalled in the UPDATE of
    one row and, in Postgres, waits for `Lock:transactionid` and `Lock:tuple`.
    It cannot deadlock: the transaction locks that one row alone, and nothing between lock and commit
    yields to the hub, so no second request of the same worker can wait for the first.
`cpu_heavy`
    `GET /api/v1/repository/<namespace>/<repository>/manifest/<manifestref>/security` compares every
    package's version with every advisory in plain Python, and a bearer token is checked against a
    password-style hash on each request. Off: advisories are looked up by package name, and a checked
    token is remembered. The profile shows workers' CPU in `security.py` and in `auth.py`.
`connect`
    Requests below `/api/v1/organization/` open a connection of their own. Off: they use the worker's
    pool like all others. The profile shows time stalled in connecting, `connections` per 1,000 requests,
    and Postgres backends that live for one request.
"""

from __future__ import annotations

from quayscope.load.demo.errors import DemoError

__all__ = ["NONE", "SWITCHES", "parse"]

SWITCHES = frozenset({"n_plus_one", "missing_index", "row_lock", "cpu_heavy", "connect"})
NONE = "none"


def parse(text: str | None) -> frozenset[str]:
    """Return the switches named in `text`; None or an empty text means all. Raises `DemoError`."""
    if text is None or not text.strip():
        return SWITCHES
    if text.strip() == NONE:
        return frozenset()
    names = frozenset(part.strip() for part in text.split(",") if part.strip())
    unknown = sorted(names - SWITCHES)
    if unknown:
        raise DemoError(
            f"there is no weak spot called {', '.join(unknown)}",
            next_step=f"use {NONE} or some of {', '.join(sorted(SWITCHES))}",
        )
    return names
