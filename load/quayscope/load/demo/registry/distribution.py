"""The distribution API below `/v2/`: catalog, tags, manifests.

Source: OCI distribution specification 1.1, "Endpoints" and "Error Codes".
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from flask import Blueprint, Response, jsonify, request, url_for

from quayscope.load.demo.registry.repositories import add_log, find
from quayscope.load.demo.registry.services import number, refuse_v2, services
from quayscope.load.demo.registry.storage import DIGEST
from quayscope.load.demo.registry.tags import MEDIA_TYPE, TAG_NAME, lock, set_tag

if TYPE_CHECKING:
    from flask.typing import ResponseReturnValue
    from psycopg2 import extensions

__all__ = ["blueprint"]

blueprint = Blueprint("distribution", __name__, url_prefix="/v2")

_MANIFEST = "/<namespace>/<repository>/manifests/<manifest_ref>"


@blueprint.get("/")
def get_version() -> ResponseReturnValue:
    """Say that this is a registry."""
    return jsonify({}), 200, {"Docker-Distribution-API-Version": "registry/2.0"}


@blueprint.get("/_catalog")
def get_catalog() -> ResponseReturnValue:
    """List public repositories by name, in pages of `n` after `last`."""
    count = number("n", 50, 500)
    with services().database.transaction() as cursor:
        cursor.execute(
            "SELECT u.username || '/' || r.name AS path FROM repository r"
            ' JOIN "user" u ON u.id = r.namespace_user_id'
            " WHERE r.visibility = 'public' AND u.username || '/' || r.name > %s ORDER BY path LIMIT %s",
            (request.args.get("last", ""), count + 1),
        )
        names = [name for (name,) in cursor.fetchall()]
    answer = jsonify({"repositories": names[:count]})
    if len(names) > count:
        following = url_for("distribution.get_catalog", n=count, last=names[count - 1])
        answer.headers["Link"] = f'<{following}>; rel="next"'
    return answer


@blueprint.get("/<namespace>/<repository>/tags/list")
def list_tags(namespace: str, repository: str) -> ResponseReturnValue:
    """List a repository's live tags by name."""
    with services().database.transaction() as cursor:
        found = _found(find(cursor, namespace, repository))
        cursor.execute(
            "SELECT name FROM tag WHERE repository_id = %s AND lifetime_end_ms IS NULL AND name > %s"
            " ORDER BY name LIMIT %s",
            (found[0], request.args.get("last", ""), number("n", 100, 500)),
        )
        tags = [name for (name,) in cursor.fetchall()]
    return jsonify({"name": f"{namespace}/{repository}", "tags": tags})


def _found(repository: tuple[int, int] | None) -> tuple[int, int]:
    return repository or refuse_v2(404, "NAME_UNKNOWN", "there is no such repository")


@blueprint.get(_MANIFEST)
def get_manifest(namespace: str, repository: str, manifest_ref: str) -> ResponseReturnValue:
    """Pull a manifest by tag or digest, and count the pull."""
    counted = request.method == "GET"
    locked = counted and "row_lock" in services().weak
    with services().database.transaction() as cursor:
        repository_id, _ = _found(find(cursor, namespace, repository))
        row = _manifest(cursor, repository_id, manifest_ref)
        if locked:
            _count_pull(cursor, repository_id, manifest_ref)
        if counted:
            _stored_bytes(cursor)
    if counted and not locked:
        with services().database.transaction() as cursor:
            _count_pull(cursor, repository_id, manifest_ref)
    digest, media_type, text = row
    return Response(text, content_type=media_type, headers={"Docker-Content-Digest": digest})


def _manifest(cursor: extensions.cursor, repository_id: int, reference: str) -> tuple[str, str, str]:
    if DIGEST.fullmatch(reference):
        cursor.execute(
            "SELECT digest, media_type, manifest_bytes FROM manifest"
            " WHERE repository_id = %s AND digest = %s",
            (repository_id, reference),
        )
    else:
        cursor.execute(
            "SELECT m.digest, m.media_type, m.manifest_bytes"
            " FROM tag t JOIN manifest m ON m.id = t.manifest_id"
            " WHERE t.repository_id = %s AND t.name = %s AND t.lifetime_end_ms IS NULL",
            (repository_id, reference),
        )
    return cursor.fetchone() or refuse_v2(404, "MANIFEST_UNKNOWN", "there is no such manifest")


def _count_pull(cursor: extensions.cursor, repository_id: int, reference: str) -> None:
    cursor.execute(
        "UPDATE repositoryactioncount SET count = count + 1 WHERE repository_id = %s", (repository_id,)
    )
    add_log(cursor, "pull_repo", repository_id, reference)


def _stored_bytes(cursor: extensions.cursor) -> int:
    """Return what all manifests take, which the registry's limit is held against at each pull. Bytes."""
    cursor.execute(
        "SELECT coalesce(sum(s.image_size), 0) FROM manifest m"
        " JOIN manifestblob b ON b.manifest_id = m.id JOIN imagestorage s ON s.id = b.blob_id"
    )
    row = cursor.fetchone()
    assert row is not None
    return int(row[0])


@blueprint.put(_MANIFEST)
def put_manifest(namespace: str, repository: str, manifest_ref: str) -> ResponseReturnValue:
    """Push a manifest whose blobs the repository has, under a tag or its own digest."""
    content = request.get_data()
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    by_digest = DIGEST.fullmatch(manifest_ref) is not None
    if by_digest and manifest_ref != digest:
        refuse_v2(400, "DIGEST_INVALID", "the manifest has another digest")
    if not by_digest and not TAG_NAME.fullmatch(manifest_ref):
        refuse_v2(400, "TAG_INVALID", "not a possible tag")
    text, wanted = _parse(content)
    with services().database.transaction() as cursor:
        repository_id, _ = _found(lock(cursor, namespace, repository))
        cursor.execute(
            "SELECT s.id, s.content_checksum FROM imagestorage s WHERE s.content_checksum = ANY(%s) AND ("
            " EXISTS (SELECT FROM uploadedblob u WHERE u.repository_id = %s AND u.blob_id = s.id) OR"
            " EXISTS (SELECT FROM manifestblob b JOIN manifest m ON m.id = b.manifest_id"
            "         WHERE m.repository_id = %s AND b.blob_id = s.id))",
            (wanted, repository_id, repository_id),
        )
        known = {checksum: blob_id for blob_id, checksum in cursor.fetchall()}
        if unknown := [checksum for checksum in wanted if checksum not in known]:
            refuse_v2(400, "MANIFEST_BLOB_UNKNOWN", f"{unknown[0]} is not in the repository")
        manifest_id = _store_manifest(cursor, repository_id, digest, text, sorted(known.values()))
        if not by_digest:
            set_tag(cursor, repository_id, manifest_ref, manifest_id)
        add_log(cursor, "push_repo", repository_id, manifest_ref)
    location = url_for(
        "distribution.get_manifest", namespace=namespace, repository=repository, manifest_ref=digest
    )
    return "", 201, {"Location": location, "Docker-Content-Digest": digest}


def _parse(content: bytes) -> tuple[str, list[str]]:
    """Return a manifest's text and the digests it names, its config's first; refuses what is none."""
    try:
        text = content.decode()
        manifest: Any = json.loads(text)
        digests = [part["digest"] for part in (manifest["config"], *manifest["layers"])]
    except (ValueError, KeyError, TypeError, RecursionError):
        refuse_v2(400, "MANIFEST_INVALID", "not an image manifest")
    if not all(isinstance(digest, str) and DIGEST.fullmatch(digest) for digest in digests):
        refuse_v2(400, "MANIFEST_INVALID", "a digest is malformed")
    return text, digests


def _store_manifest(
    cursor: extensions.cursor, repository_id: int, digest: str, text: str, blobs: list[int]
) -> int:
    cursor.execute(
        "INSERT INTO manifest (repository_id, digest, media_type, manifest_bytes) VALUES (%s, %s, %s, %s)"
        " ON CONFLICT (repository_id, digest) DO UPDATE SET media_type = excluded.media_type RETURNING id",
        (repository_id, digest, request.mimetype or MEDIA_TYPE, text),
    )
    row = cursor.fetchone()
    assert row is not None
    cursor.execute(
        "INSERT INTO manifestblob (manifest_id, blob_id) SELECT %s, unnest(%s::integer[])"
        " ON CONFLICT DO NOTHING",
        (row[0], blobs),
    )
    return int(row[0])
