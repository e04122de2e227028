"""The Flask application: its routes, its limits, its answers to trouble below it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, cast

import psycopg2
from flask import Flask, jsonify, request
from werkzeug.exceptions import HTTPException

from quayscope.load.demo.registry import blobs, distribution, people, repositories, security, tags
from quayscope.load.demo.registry.auth import Authenticator
from quayscope.load.demo.registry.database import Database
from quayscope.load.demo.registry.ledger import RULE, Ledger
from quayscope.load.demo.registry.services import EXTENSION, Services, refuse, storable
from quayscope.load.demo.registry.storage import Storage

if TYPE_CHECKING:
    from flask.typing import ResponseReturnValue

    from quayscope.load.demo.registry.settings import Settings

__all__ = ["LEDGER", "MAX_BODY_BYTES", "create", "ledger_of"]

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 16 * 1024 * 1024
LEDGER = "registry-ledger"
"""Key of the application's `Ledger` in its extensions."""


def create(settings: Settings) -> Flask:
    """Return the application. It connects to nothing before its first request, so it can be forked."""
    app = Flask("registry", static_folder=None)
    database = Database(settings.dsn)
    app.extensions[EXTENSION] = Services(
        database,
        Storage(settings.directory),
        Authenticator(database, remember="cpu_heavy" not in settings.weak),
        settings.weak,
    )
    for part in (repositories, tags, people, security, distribution, blobs):
        app.register_blueprint(part.blueprint)
    app.before_request(_before_request)
    app.register_error_handler(psycopg2.OperationalError, _database_away)
    app.register_error_handler(psycopg2.InterfaceError, _database_away)
    app.register_error_handler(psycopg2.IntegrityError, _conflict)
    app.register_error_handler(psycopg2.DataError, _impossible)
    app.register_error_handler(HTTPException, _refused)
    ledger = Ledger(app.wsgi_app, settings.directory, MAX_BODY_BYTES)
    app.extensions[LEDGER] = ledger
    # The way Flask documents for middleware.
    app.wsgi_app = ledger  # type: ignore[method-assign]
    return app


def _before_request() -> None:
    if request.url_rule is not None:
        request.environ[RULE] = request.url_rule.rule
    if not all(storable(text) for text in (request.path, *request.args.values())):
        refuse(400, "the address holds characters that cannot be stored")


def _database_away(error: Exception) -> ResponseReturnValue:
    # The text is libpq's: it names the server and the trouble, never the password or a statement's values.
    log.warning("database trouble: %s", (str(error).strip().splitlines() or ["closed"])[0])
    return jsonify({"status": 503, "error_message": "the database does not answer"}), 503


def _conflict(_: Exception) -> ResponseReturnValue:
    return jsonify({"status": 409, "error_message": "the object was changed or deleted meanwhile"}), 409


def _refused(error: HTTPException) -> ResponseReturnValue:
    status = error.code or 500
    return jsonify({"status": status, "error_message": error.name.lower()}), status


def _impossible(_: Exception) -> ResponseReturnValue:
    return jsonify({"status": 400, "error_message": "a value is out of range"}), 400


def ledger_of(app: Flask) -> Ledger:
    """Return the application's ledger."""
    return cast(Ledger, app.extensions[LEDGER])
