"""How gunicorn runs the registry: as Quay's web app is run.

The address comes from `--bind`, or from gunicorn's own GUNICORN_CMD_ARGS.
"""

from __future__ import annotations

from typing import Any

from gevent import monkey

# Quay's web.py does the same, in the master, before it imports anything else of the application.
monkey.patch_all()

import gevent  # noqa: E402 - after patching

from quayscope.load.demo.registry.ledger import WRITE_EVERY_SECONDS, Ledger  # noqa: E402 - after patching

preload_app = True
worker_class = "gevent"
workers = 2
# A connection a request, as behind Quay's nginx: the worker that is free takes it, and none is lost to a
# server that closes a kept connection just when the next request is on its way.
keepalive = 0
graceful_timeout = 3
timeout = 60
accesslog = None
errorlog = "-"
# It would write a socket file below the home directory.
control_socket_disable = True


def _ledger() -> Ledger:
    # Imported here: with preload_app it is there already, and without it not before the worker loads it.
    from quayscope.load.demo.registry.app import app
    from quayscope.load.demo.registry.application import ledger_of

    return ledger_of(app)


def post_worker_init(worker: Any) -> None:  # noqa: ARG001 - gunicorn's signature
    """Write the ledger each second, also when no request comes to do it."""
    gevent.spawn(_keep_writing, _ledger())


def _keep_writing(ledger: Ledger) -> None:
    while True:
        gevent.sleep(WRITE_EVERY_SECONDS)
        ledger.write_if_due()


def worker_exit(server: Any, worker: Any) -> None:  # noqa: ARG001 - gunicorn's signature
    """Write what the last second brought."""
    _ledger().write()
