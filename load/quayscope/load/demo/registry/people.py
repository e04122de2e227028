"""Users, teams and who may use a repository."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flask import Blueprint, jsonify, request

from quayscope.load.demo.registry.repositories import find
from quayscope.load.demo.registry.services import body, refuse, services

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from flask.typing import ResponseReturnValue
    from psycopg2 import extensions

__all__ = ["blueprint"]

blueprint = Blueprint("people", __name__, url_prefix="/api/v1")

_TEAM = "/organization/<orgname>/team/<teamname>"
_PERMISSIONS = "/repository/<namespace>/<repository>/permissions"
_TEAM_ROLES = ("member", "creator", "admin")
_REPOSITORY_ROLES = ("read", "write", "admin")


@blueprint.get("/user/")
def get_user() -> ResponseReturnValue:
    """Say who the bearer of the token is (weak spot `cpu_heavy`)."""
    name = services().authenticator.user(request.headers.get("Authorization", ""))
    if name is None:
        refuse(401, "a valid bearer token is required")
    return jsonify({"username": name, "anonymous": False})


@blueprint.get("/users/<username>")
def get_user_by_name(username: str) -> ResponseReturnValue:
    """Read what is public of a user."""
    with services().database.transaction() as cursor:
        cursor.execute(
            'SELECT username, organization FROM "user" WHERE username = %s AND enabled', (username,)
        )
        row = cursor.fetchone() or refuse(404, "there is no such user")
    return jsonify({"username": row[0], "is_organization": row[1]})


def _organization_transaction() -> AbstractContextManager[extensions.cursor]:
    """Weak spot `connect`: what concerns organizations runs on a connection of its own."""
    return services().database.transaction(own_connection="connect" in services().weak)


def _user(cursor: extensions.cursor, name: str) -> int:
    cursor.execute('SELECT id FROM "user" WHERE username = %s AND NOT organization', (name,))
    row = cursor.fetchone() or refuse(404, "there is no such user")
    return int(row[0])


def _team(cursor: extensions.cursor, organization: str, name: str) -> int:
    cursor.execute(
        'SELECT t.id FROM team t JOIN "user" u ON u.id = t.organization_id'
        " WHERE u.username = %s AND t.name = %s",
        (organization, name),
    )
    row = cursor.fetchone() or refuse(404, "there is no such team")
    return int(row[0])


@blueprint.put(_TEAM)
def put_team(orgname: str, teamname: str) -> ResponseReturnValue:
    """Create a team or change its role."""
    given = body("role")
    if given["role"] not in _TEAM_ROLES:
        refuse(400, f"role is none of {', '.join(_TEAM_ROLES)}")
    with _organization_transaction() as cursor:
        cursor.execute(
            "INSERT INTO team (name, organization_id, role)"
            ' SELECT %s, id, %s FROM "user" WHERE username = %s AND organization'
            " ON CONFLICT (organization_id, name) DO UPDATE SET role = excluded.role RETURNING id",
            (teamname, given["role"], orgname),
        )
        if cursor.fetchone() is None:
            refuse(404, "there is no such organization")
    return jsonify({"name": teamname, "role": given["role"]})


@blueprint.delete(_TEAM)
def delete_team(orgname: str, teamname: str) -> ResponseReturnValue:
    """Delete a team."""
    with _organization_transaction() as cursor:
        cursor.execute("DELETE FROM team WHERE id = %s", (_team(cursor, orgname, teamname),))
    return "", 204


@blueprint.get(f"{_TEAM}/members")
def list_members(orgname: str, teamname: str) -> ResponseReturnValue:
    """List a team's members."""
    with _organization_transaction() as cursor:
        cursor.execute(
            'SELECT u.username FROM teammember m JOIN "user" u ON u.id = m.user_id'
            " WHERE m.team_id = %s ORDER BY u.username",
            (_team(cursor, orgname, teamname),),
        )
        members = [{"name": name, "kind": "user"} for (name,) in cursor.fetchall()]
    return jsonify({"name": teamname, "members": members})


@blueprint.put(f"{_TEAM}/members/<membername>")
def put_member(orgname: str, teamname: str, membername: str) -> ResponseReturnValue:
    """Add a member to a team; one who is a member already stays."""
    with _organization_transaction() as cursor:
        team_id = _team(cursor, orgname, teamname)
        cursor.execute(
            "INSERT INTO teammember (user_id, team_id) VALUES (%s, %s) ON CONFLICT DO NOTHING",
            (_user(cursor, membername), team_id),
        )
    return jsonify({"name": membername, "kind": "user"})


@blueprint.delete(f"{_TEAM}/members/<membername>")
def delete_member(orgname: str, teamname: str, membername: str) -> ResponseReturnValue:
    """Take a member out of a team."""
    with _organization_transaction() as cursor:
        team_id = _team(cursor, orgname, teamname)
        cursor.execute(
            "DELETE FROM teammember WHERE team_id = %s AND user_id = %s", (team_id, _user(cursor, membername))
        )
        if not cursor.rowcount:
            refuse(404, "the user is no member")
    return "", 204


@blueprint.get(f"{_PERMISSIONS}/user/")
def list_permissions(namespace: str, repository: str) -> ResponseReturnValue:
    """List the users who may use a repository."""
    with services().database.transaction() as cursor:
        found = find(cursor, namespace, repository) or refuse(404, "there is no such repository")
        cursor.execute(
            'SELECT u.username, p.role FROM repositorypermission p JOIN "user" u ON u.id = p.user_id'
            " WHERE p.repository_id = %s ORDER BY u.username",
            (found[0],),
        )
        permissions = {name: {"name": name, "role": role} for name, role in cursor.fetchall()}
    return jsonify({"permissions": permissions})


@blueprint.get(f"{_PERMISSIONS}/user/<username>")
def get_permission(namespace: str, repository: str, username: str) -> ResponseReturnValue:
    """Read what a user may do with a repository."""
    with services().database.transaction() as cursor:
        found = find(cursor, namespace, repository) or refuse(404, "there is no such repository")
        cursor.execute(
            "SELECT role FROM repositorypermission WHERE repository_id = %s AND user_id = %s",
            (found[0], _user(cursor, username)),
        )
        row = cursor.fetchone() or refuse(404, "the user has no permission")
    return jsonify({"name": username, "role": row[0]})


def _role() -> str:
    given = body("role")
    if given["role"] not in _REPOSITORY_ROLES:
        refuse(400, f"role is none of {', '.join(_REPOSITORY_ROLES)}")
    return str(given["role"])


@blueprint.put(f"{_PERMISSIONS}/user/<username>")
def put_permission(namespace: str, repository: str, username: str) -> ResponseReturnValue:
    """Let a user use a repository."""
    role = _role()
    with services().database.transaction() as cursor:
        found = find(cursor, namespace, repository) or refuse(404, "there is no such repository")
        cursor.execute(
            "INSERT INTO repositorypermission (repository_id, user_id, role) VALUES (%s, %s, %s)"
            " ON CONFLICT (repository_id, user_id) DO UPDATE SET role = excluded.role",
            (found[0], _user(cursor, username), role),
        )
    return jsonify({"name": username, "role": role})


@blueprint.delete(f"{_PERMISSIONS}/user/<username>")
def delete_permission(namespace: str, repository: str, username: str) -> ResponseReturnValue:
    """Let a user use a repository no longer."""
    with services().database.transaction() as cursor:
        found = find(cursor, namespace, repository) or refuse(404, "there is no such repository")
        cursor.execute(
            "DELETE FROM repositorypermission WHERE repository_id = %s AND user_id = %s",
            (found[0], _user(cursor, username)),
        )
        if not cursor.rowcount:
            refuse(404, "the user has no permission")
    return "", 204


@blueprint.put(f"{_PERMISSIONS}/team/<teamname>")
def put_team_permission(namespace: str, repository: str, teamname: str) -> ResponseReturnValue:
    """Let a team of the repository's organization use it."""
    role = _role()
    with services().database.transaction() as cursor:
        found = find(cursor, namespace, repository) or refuse(404, "there is no such repository")
        cursor.execute(
            "INSERT INTO repositorypermission (repository_id, team_id, role) VALUES (%s, %s, %s)"
            " ON CONFLICT (repository_id, team_id) DO UPDATE SET role = excluded.role",
            (found[0], _team(cursor, namespace, teamname), role),
        )
    return jsonify({"name": teamname, "role": role})
