"""Repositories: list, create, read, change, delete; and the search in their logs."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import psycopg2.errors
from flask import Blueprint, jsonify, request

from quayscope.load.demo.registry.services import body, number, refuse, services

if TYPE_CHECKING:
    from flask.typing import ResponseReturnValue
    from psycopg2 import extensions

__all__ = ["add_log", "blueprint", "find"]

blueprint = Blueprint("repositories", __name__, url_prefix="/api/v1/repository")

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")


def find(cursor: extensions.cursor, namespace: str, name: str) -> tuple[int, int] | None:
    """Return (repository id, namespace id), or None where there is no such repository."""
    cursor.execute(
        'SELECT r.id, r.namespace_user_id FROM repository r JOIN "user" u ON u.id = r.namespace_user_id'
        " WHERE u.username = %s AND r.name = %s",
        (namespace, name),
    )
    return cursor.fetchone()


def add_log(cursor: extensions.cursor, kind: str, repository_id: int, tag: str = "") -> None:
    """Add an entry to the usage log."""
    cursor.execute(
        "INSERT INTO logentry (kind, performer, repository_id, ip, metadata_json)"
        " VALUES (%s, %s, %s, %s, json_build_object('tag', %s::text)::text)",
        (kind, "user1", repository_id, request.remote_addr or "", tag),
    )


@blueprint.get("")
def list_repositories() -> ResponseReturnValue:
    """List a namespace's repositories, newest first, each with its newest tag and who may use it."""
    namespace = request.args.get("namespace") or refuse(400, "namespace is missing")
    limit = number("limit", 20, 100)
    offset = (number("page", 1, 10_000) - 1) * limit
    one_by_one = "n_plus_one" in services().weak
    with services().database.transaction() as cursor:
        rows = (_list_one_by_one if one_by_one else _list_joined)(cursor, namespace, limit, offset)
    return jsonify({"repositories": rows})


def _list_one_by_one(
    cursor: extensions.cursor, namespace: str, limit: int, offset: int
) -> list[dict[str, Any]]:
    cursor.execute(
        "SELECT r.id, r.name, r.visibility, r.description FROM repository r"
        ' JOIN "user" u ON u.id = r.namespace_user_id'
        " WHERE u.username = %s ORDER BY r.id DESC LIMIT %s OFFSET %s",
        (namespace, limit, offset),
    )
    rows = []
    for repository_id, *columns in cursor.fetchall():
        cursor.execute(
            "SELECT name, lifetime_start_ms FROM tag WHERE repository_id = %s AND lifetime_end_ms IS NULL"
            " ORDER BY lifetime_start_ms DESC LIMIT 1",
            (repository_id,),
        )
        tag = cursor.fetchone() or (None, None)
        cursor.execute(
            'SELECT u.username, p.role FROM repositorypermission p JOIN "user" u ON u.id = p.user_id'
            " WHERE p.repository_id = %s ORDER BY u.username",
            (repository_id,),
        )
        rows.append(_listed(namespace, columns, tag, dict(cursor.fetchall())))
    return rows


def _list_joined(cursor: extensions.cursor, namespace: str, limit: int, offset: int) -> list[dict[str, Any]]:
    cursor.execute(
        "SELECT r.name, r.visibility, r.description, t.name, t.lifetime_start_ms, p.roles"
        ' FROM repository r JOIN "user" n ON n.id = r.namespace_user_id'
        " LEFT JOIN LATERAL (SELECT name, lifetime_start_ms FROM tag"
        "   WHERE repository_id = r.id AND lifetime_end_ms IS NULL"
        "   ORDER BY lifetime_start_ms DESC LIMIT 1) t ON true"
        " LEFT JOIN LATERAL (SELECT json_object_agg(u.username, o.role ORDER BY u.username) AS roles"
        '   FROM repositorypermission o JOIN "user" u ON u.id = o.user_id'
        "   WHERE o.repository_id = r.id) p ON true"
        " WHERE n.username = %s ORDER BY r.id DESC LIMIT %s OFFSET %s",
        (namespace, limit, offset),
    )
    return [_listed(namespace, row[:3], row[3:5], row[5] or {}) for row in cursor.fetchall()]


def _listed(namespace: str, columns: Any, tag: Any, permissions: dict[str, str]) -> dict[str, Any]:
    name, visibility, description = columns
    return {
        "namespace": namespace,
        "name": name,
        "is_public": visibility == "public",
        "description": description,
        "last_tag": tag[0],
        "last_modified": tag[1],
        "permissions": permissions,
    }


@blueprint.post("")
def create_repository() -> ResponseReturnValue:
    """Create a repository."""
    given = body("namespace", "repository", "visibility")
    if not NAME.fullmatch(given["repository"]) or given["visibility"] not in ("public", "private"):
        refuse(400, "repository or visibility is not a possible one")
    try:
        with services().database.transaction() as cursor:
            cursor.execute(
                "INSERT INTO repository (namespace_user_id, name, visibility, description)"
                ' SELECT id, %s, %s, %s FROM "user" WHERE username = %s RETURNING id',
                (
                    given["repository"],
                    given["visibility"],
                    str(given.get("description", "")),
                    given["namespace"],
                ),
            )
            row = cursor.fetchone()
            if row is None:
                refuse(404, "there is no such namespace")
            cursor.execute("INSERT INTO repositoryactioncount (repository_id) VALUES (%s)", row)
            cursor.execute(
                "INSERT INTO repositorypermission (repository_id, user_id, role)"
                " SELECT %s, id, 'admin' FROM \"user\" WHERE username = %s",
                (row[0], "user1"),
            )
            add_log(cursor, "create_repo", row[0])
    except psycopg2.errors.UniqueViolation:
        refuse(400, "the repository exists already")
    return jsonify({"namespace": given["namespace"], "name": given["repository"], "kind": "image"}), 201


@blueprint.get("/<namespace>/<repository>")
def get_repository(namespace: str, repository: str) -> ResponseReturnValue:
    """Read a repository with its live tags."""
    with services().database.transaction() as cursor:
        cursor.execute(
            "SELECT r.id, r.visibility, r.kind, r.description, c.count FROM repository r"
            ' JOIN "user" u ON u.id = r.namespace_user_id'
            " LEFT JOIN repositoryactioncount c ON c.repository_id = r.id"
            " WHERE u.username = %s AND r.name = %s",
            (namespace, repository),
        )
        row = cursor.fetchone() or refuse(404, "there is no such repository")
        cursor.execute(
            "SELECT t.name, m.digest, t.lifetime_start_ms FROM tag t JOIN manifest m ON m.id = t.manifest_id"
            " WHERE t.repository_id = %s AND t.lifetime_end_ms IS NULL ORDER BY t.name LIMIT 500",
            (row[0],),
        )
        tags = {
            name: {"name": name, "manifest_digest": digest, "start_ms": start_ms}
            for name, digest, start_ms in cursor.fetchall()
        }
    return jsonify(
        {
            "namespace": namespace,
            "name": repository,
            "kind": row[2],
            "description": row[3],
            "is_public": row[1] == "public",
            "pulls": row[4],
            "tags": tags,
        }
    )


@blueprint.put("/<namespace>/<repository>")
def update_repository(namespace: str, repository: str) -> ResponseReturnValue:
    """Change a repository's description."""
    given = body("description")
    with services().database.transaction() as cursor:
        found = find(cursor, namespace, repository) or refuse(404, "there is no such repository")
        cursor.execute(
            "UPDATE repository SET description = %s WHERE id = %s", (given["description"], found[0])
        )
        add_log(cursor, "set_repo_description", found[0])
    return jsonify({"success": True})


@blueprint.delete("/<namespace>/<repository>")
def delete_repository(namespace: str, repository: str) -> ResponseReturnValue:
    """Delete a repository and all that belongs to it; the log stays."""
    with services().database.transaction() as cursor:
        found = find(cursor, namespace, repository) or refuse(404, "there is no such repository")
        cursor.execute("DELETE FROM repository WHERE id = %s", (found[0],))
        add_log(cursor, "delete_repo", found[0])
    return "", 204


@blueprint.get("/<namespace>/<repository>/logs")
def list_logs(namespace: str, repository: str) -> ResponseReturnValue:
    """Search the usage log for a repository's newest entries (weak spot `missing_index`)."""
    limit = number("limit", 20, 100)
    with services().database.transaction() as cursor:
        found = find(cursor, namespace, repository) or refuse(404, "there is no such repository")
        cursor.execute(
            "SELECT kind, performer, datetime, ip, metadata_json FROM logentry"
            " WHERE repository_id = %s ORDER BY datetime DESC LIMIT %s",
            (found[0], limit),
        )
        logs = [
            {
                "kind": kind,
                "performer": {"name": performer},
                "datetime": when.isoformat(),
                "ip": ip,
                "metadata": metadata,
            }
            for kind, performer, when, ip, metadata in cursor.fetchall()
        ]
    return jsonify({"logs": logs})
