"""Tags: list, set, delete; and how every writer of tags goes about it."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

from flask import Blueprint, jsonify

from quayscope.load.demo.registry.repositories import add_log, find
from quayscope.load.demo.registry.services import body, number, refuse, services

if TYPE_CHECKING:
    from flask.typing import ResponseReturnValue
    from psycopg2 import extensions

__all__ = ["MEDIA_TYPE", "TAG_NAME", "blueprint", "lock", "set_tag"]

blueprint = Blueprint("tags", __name__, url_prefix="/api/v1/repository/<namespace>/<repository>/tag")

MEDIA_TYPE = "application/vnd.oci.image.manifest.v1+json"
TAG_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


def lock(cursor: extensions.cursor, namespace: str, repository: str) -> tuple[int, int] | None:
    """Find a repository and let no second transaction write its tags until this one ends.

    To be taken before anything is written: two writers of one tag else collide in its unique index, and
    a lock taken after a first write could be waited for in a circle.
    """
    found = find(cursor, namespace, repository)
    if found is not None:
        cursor.execute("SELECT id FROM repository WHERE id = %s FOR NO KEY UPDATE", (found[0],))
    return found


def set_tag(cursor: extensions.cursor, repository_id: int, name: str, manifest_id: int) -> None:
    """Let a tag point at a manifest from now on; what it pointed at before ends."""
    now_ms = time.time_ns() // 1_000_000
    _end_tag(cursor, repository_id, name, now_ms)
    cursor.execute(
        "INSERT INTO tag (name, repository_id, manifest_id, lifetime_start_ms) VALUES (%s, %s, %s, %s)",
        (name, repository_id, manifest_id, now_ms),
    )


def _end_tag(cursor: extensions.cursor, repository_id: int, name: str, now_ms: int) -> int:
    cursor.execute(
        "UPDATE tag SET lifetime_end_ms = %s"
        " WHERE repository_id = %s AND name = %s AND lifetime_end_ms IS NULL",
        (now_ms, repository_id, name),
    )
    return cursor.rowcount


@blueprint.get("/")
def list_tags(namespace: str, repository: str) -> ResponseReturnValue:
    """List a repository's live tags, newest first."""
    limit = number("limit", 50, 100)
    page = number("page", 1, 10_000)
    with services().database.transaction() as cursor:
        found = find(cursor, namespace, repository) or refuse(404, "there is no such repository")
        cursor.execute(
            "SELECT t.name, m.digest, t.lifetime_start_ms FROM tag t JOIN manifest m ON m.id = t.manifest_id"
            " WHERE t.repository_id = %s AND t.lifetime_end_ms IS NULL"
            " ORDER BY t.lifetime_start_ms DESC, t.name LIMIT %s OFFSET %s",
            (found[0], limit + 1, (page - 1) * limit),
        )
        rows = cursor.fetchall()
    tags = [
        {"name": name, "manifest_digest": digest, "start_ms": start} for name, digest, start in rows[:limit]
    ]
    return jsonify({"tags": tags, "page": page, "has_additional": len(rows) > limit})


@blueprint.put("/<tag>")
def change_tag(namespace: str, repository: str, tag: str) -> ResponseReturnValue:
    """Point a tag at a manifest of the same repository."""
    given = body("manifest_digest")
    if not TAG_NAME.fullmatch(tag):
        refuse(400, "not a possible tag")
    with services().database.transaction() as cursor:
        found = lock(cursor, namespace, repository) or refuse(404, "there is no such repository")
        cursor.execute(
            "SELECT id FROM manifest WHERE repository_id = %s AND digest = %s",
            (found[0], given["manifest_digest"]),
        )
        manifest = cursor.fetchone() or refuse(404, "there is no such manifest")
        set_tag(cursor, found[0], tag, manifest[0])
        add_log(cursor, "create_tag", found[0], tag)
    return jsonify("Updated"), 201


@blueprint.delete("/<tag>")
def delete_tag(namespace: str, repository: str, tag: str) -> ResponseReturnValue:
    """End a tag."""
    with services().database.transaction() as cursor:
        found = lock(cursor, namespace, repository) or refuse(404, "there is no such repository")
        if not _end_tag(cursor, found[0], tag, time.time_ns() // 1_000_000):
            refuse(404, "there is no such tag")
        add_log(cursor, "delete_tag", found[0], tag)
    return "", 204
