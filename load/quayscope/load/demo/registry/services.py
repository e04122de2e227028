"""What the views share, and the two ways of refusing a request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

from flask import abort, current_app, jsonify, make_response, request

from quayscope.load.demo.registry.auth import Authenticator
from quayscope.load.demo.registry.database import Database
from quayscope.load.demo.registry.storage import Storage

__all__ = ["Services", "body", "number", "refuse", "refuse_v2", "services", "storable"]

EXTENSION = "registry"


@dataclass(frozen=True)
class Services:
    """The parts that requests are answered with. `weak` holds the weak spots that are on."""

    database: Database
    storage: Storage
    authenticator: Authenticator
    weak: frozenset[str]


def services() -> Services:
    """Return the running application's services."""
    held = current_app.extensions[EXTENSION]
    assert isinstance(held, Services)
    return held


def refuse(status: int, message: str) -> NoReturn:
    """End the request as Quay's API does."""
    abort(make_response(jsonify({"status": status, "error_message": message}), status))


def refuse_v2(status: int, code: str, message: str) -> NoReturn:
    """End the request as the distribution API does; `code` is one of its error codes."""
    abort(make_response(jsonify({"errors": [{"code": code, "message": message}]}), status))


def body(*required: str) -> dict[str, Any]:
    """Return the request's JSON object; a missing or non-text member of `required` ends it with 400."""
    content = request.get_json(silent=True)
    if not isinstance(content, dict):
        refuse(400, "the body is not a JSON object")
    for value in content.values():
        if isinstance(value, str) and not storable(value):
            refuse(400, "a text holds characters that cannot be stored")
    for name in required:
        if not isinstance(content.get(name), str) or not content[name]:
            refuse(400, f"{name} is missing")
    return content


def storable(text: str) -> bool:
    """Whether Postgres takes a text: no NUL, and nothing that UTF-8 cannot say (lone surrogates)."""
    return "\0" not in text and text == text.encode(errors="replace").decode()


def number(name: str, default: int, most: int) -> int:
    """Return a query parameter between 1 and `most`; anything else ends the request with 400."""
    text = request.args.get(name, str(default))
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= most:
        refuse(400, f"{name} is not a number from 1 to {most}")
    return int(text)
