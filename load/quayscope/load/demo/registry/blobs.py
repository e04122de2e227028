"""Blobs below `/v2/`: upload in one or several parts, look up, download.

Source: OCI distribution specification 1.1, "Pushing blobs" and "Pulling blobs".
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from flask import Blueprint, Response, request, url_for

from quayscope.load.demo.registry.repositories import find
from quayscope.load.demo.registry.services import refuse_v2, services
from quayscope.load.demo.registry.storage import DIGEST

if TYPE_CHECKING:
    from flask.typing import ResponseReturnValue
    from psycopg2 import extensions

__all__ = ["blueprint"]

blueprint = Blueprint("blobs", __name__, url_prefix="/v2/<namespace>/<repository>/blobs")

_UPLOAD = "/uploads/<upload_uuid>"


def _repository(cursor: extensions.cursor, namespace: str, repository: str) -> int:
    found = find(cursor, namespace, repository) or refuse_v2(
        404, "NAME_UNKNOWN", "there is no such repository"
    )
    return found[0]


def _unknown_upload(*_: object) -> ResponseReturnValue:
    refuse_v2(404, "BLOB_UPLOAD_UNKNOWN", "there is no such upload")


def _begun(cursor: extensions.cursor, repository_id: int, upload: str) -> None:
    """Take the upload for this transaction: two parts at once would mix."""
    cursor.execute(
        "SELECT id FROM blobupload WHERE uuid = %s AND repository_id = %s FOR UPDATE", (upload, repository_id)
    )
    if cursor.fetchone() is None:
        _unknown_upload()


def _accepted(namespace: str, repository: str, upload: str, size: int) -> ResponseReturnValue:
    location = url_for("blobs.append", namespace=namespace, repository=repository, upload_uuid=upload)
    headers = {"Location": location, "Docker-Upload-UUID": upload, "Range": f"0-{max(0, size - 1)}"}
    return "", 202, headers


@blueprint.post("/uploads/")
def start(namespace: str, repository: str) -> ResponseReturnValue:
    """Begin an upload; its address is the answer's Location."""
    upload = uuid.uuid4().hex
    with services().database.transaction() as cursor:
        repository_id = _repository(cursor, namespace, repository)
        cursor.execute(
            "INSERT INTO blobupload (uuid, repository_id) VALUES (%s, %s)", (upload, repository_id)
        )
    return _accepted(namespace, repository, upload, 0)


@blueprint.patch(_UPLOAD)
def append(namespace: str, repository: str, upload_uuid: str) -> ResponseReturnValue:
    """Add bytes to an upload."""
    with services().database.transaction() as cursor:
        _begun(cursor, _repository(cursor, namespace, repository), upload_uuid)
        size = services().storage.append(upload_uuid, request.get_data())
        cursor.execute("UPDATE blobupload SET byte_count = %s WHERE uuid = %s", (size, upload_uuid))
    return _accepted(namespace, repository, upload_uuid, size)


@blueprint.put(_UPLOAD)
def finish(namespace: str, repository: str, upload_uuid: str) -> ResponseReturnValue:
    """Add the last bytes and make the upload the blob `?digest=`."""
    digest = request.args.get("digest", "")
    if not DIGEST.fullmatch(digest):
        refuse_v2(400, "DIGEST_INVALID", "digest is missing or malformed")
    storage = services().storage
    with services().database.transaction() as cursor:
        repository_id = _repository(cursor, namespace, repository)
        _begun(cursor, repository_id, upload_uuid)
        storage.append(upload_uuid, request.get_data())
        size = storage.finish(upload_uuid, digest)
        cursor.execute("DELETE FROM blobupload WHERE uuid = %s", (upload_uuid,))
        if size is not None:
            cursor.execute(
                "INSERT INTO imagestorage (content_checksum, image_size) VALUES (%s, %s)"
                " ON CONFLICT (content_checksum) DO UPDATE SET image_size = excluded.image_size RETURNING id",
                (digest, size),
            )
            row = cursor.fetchone()
            assert row is not None
            cursor.execute(
                "INSERT INTO uploadedblob (repository_id, blob_id) VALUES (%s, %s) ON CONFLICT DO NOTHING",
                (repository_id, row[0]),
            )
    if size is None:
        storage.abandon(upload_uuid)
        refuse_v2(400, "DIGEST_INVALID", "the bytes have another digest")
    location = url_for("blobs.get_blob", namespace=namespace, repository=repository, digest=digest)
    return "", 201, {"Location": location, "Docker-Content-Digest": digest}


@blueprint.delete(_UPLOAD)
def abandon(namespace: str, repository: str, upload_uuid: str) -> ResponseReturnValue:
    """Give an upload up."""
    with services().database.transaction() as cursor:
        _begun(cursor, _repository(cursor, namespace, repository), upload_uuid)
        cursor.execute("DELETE FROM blobupload WHERE uuid = %s", (upload_uuid,))
    services().storage.abandon(upload_uuid)
    return "", 204


@blueprint.get("/<digest>")
def get_blob(namespace: str, repository: str, digest: str) -> ResponseReturnValue:
    """Download a blob that the repository has."""
    with services().database.transaction() as cursor:
        repository_id = _repository(cursor, namespace, repository)
        cursor.execute(
            "SELECT s.image_size FROM imagestorage s WHERE s.content_checksum = %s AND ("
            " EXISTS (SELECT FROM uploadedblob u WHERE u.repository_id = %s AND u.blob_id = s.id) OR"
            " EXISTS (SELECT FROM manifestblob b JOIN manifest m ON m.id = b.manifest_id"
            "         WHERE m.repository_id = %s AND b.blob_id = s.id))",
            (digest, repository_id, repository_id),
        )
        row = cursor.fetchone() or refuse_v2(404, "BLOB_UNKNOWN", "the repository has no such blob")
    content = b"" if request.method == "HEAD" else services().storage.read(digest)
    answer = Response(
        content, content_type="application/octet-stream", headers={"Docker-Content-Digest": digest}
    )
    answer.content_length = row[0]
    return answer
