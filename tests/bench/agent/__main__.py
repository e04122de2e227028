"""What the agent costs and is worth, beside the stock tools: `make bench-agent`, or `python -m bench.agent`.

Prints a table and writes flat figures. Exits with 1 when a bound that the agent is held to was missed, with
3 when it could not be measured.
"""

from __future__ import annotations

import sys

import psycopg2

from bench.agent.app import TABLE
from bench.agent.parts import PARTS, Given
from bench.agent.report import REPORT, versions
from bench.command import Asked, command
from quayscope.load.demo.postgres import DemoPostgres

QUICK_PAIRS = 1
OTHERS_A_PAIR = 3
"""The stock tools are measured in so many times fewer pairs: nothing is asked of them."""


def measure(asked: Asked) -> dict[str, object]:
    """Return the figures of the parts asked for."""
    figures: dict[str, object] = {"versions": versions()}
    quick = asked.quick
    with DemoPostgres(asked.folder / "postgres") as postgres:
        connection = psycopg2.connect(postgres.dsn)
        with connection, connection.cursor() as cursor:
            cursor.execute(TABLE)
        connection.close()
        given = Given(
            asked.folder,
            postgres.dsn,
            QUICK_PAIRS if quick else asked.pairs,
            QUICK_PAIRS if quick else max(1, asked.pairs // OTHERS_A_PAIR),
            1.0 if quick else asked.seconds,
            0.3 if quick else 1.5,
            2.0 if quick else 30.0,
            2 if quick else 10,
            1 if quick else 5,
            asked.say,
        )
        for part in asked.parts:
            figures.update(PARTS[part](given))
    return figures


if __name__ == "__main__":
    sys.exit(command("agent", __doc__ or "", PARTS, REPORT, measure, seconds=4.0, pairs=30))
