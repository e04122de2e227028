"""Creates the registry's tables and fills them: `python -m quayscope.load.demo.registry.seed`.

About 2,000 repositories of 20 organizations, 40,000 tags, 300,000 log entries: enough that a statement
costs something. Rows are made by Postgres itself out of running numbers, so that every run has the same;
only the blobs, which manifests refer to by digest, are made here.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import time

import psycopg2
import psycopg2.extras
from psycopg2 import sql

from quayscope.load.demo.errors import DemoError
from quayscope.load.demo.registry.auth import DEMO_TOKEN, hash_token, token_name
from quayscope.load.demo.registry.schema import LOG_INDEX, TABLES
from quayscope.load.demo.registry.settings import Settings
from quayscope.load.demo.registry.storage import Storage
from quayscope.load.demo.registry.tags import MEDIA_TYPE
from quayscope.profile import Failure

__all__ = ["LOG_ENTRIES", "ORGANIZATIONS", "REPOSITORIES", "TAGS_EACH", "USERS", "fill", "main"]

log = logging.getLogger(__name__)

ORGANIZATIONS = 20
"""Named `org1`, `org2`, ..."""
USERS = 500
"""Named `user1`, `user2`, ..."""
TEAMS_EACH = 3
"""Teams of each organization, `team1`, ..., with ten members each."""
REPOSITORIES = 2_000
"""Each organization has `repo1`, `repo2`, ..., `repo100`."""
TAGS_EACH = 20
"""Live tags of each repository: `v1` to `v19`, and `latest`."""
MANIFESTS_EACH = 5
LOG_ENTRIES = 300_000
BLOBS = 256
BLOB_BYTES = 4096
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"
ADVISORIES = 250

ROWS = f"""
INSERT INTO "user" (username, email, organization)
    SELECT 'org' || n, 'org' || n || '@example.com', true FROM generate_series(1, {ORGANIZATIONS}) n;
INSERT INTO "user" (username, email)
    SELECT 'user' || n, 'user' || n || '@example.com' FROM generate_series(1, {USERS}) n;
INSERT INTO team (name, organization_id, role)
    SELECT 'team' || t, u.id, CASE t WHEN 1 THEN 'admin' WHEN 2 THEN 'creator' ELSE 'member' END
    FROM "user" u, generate_series(1, {TEAMS_EACH}) t WHERE u.organization;
INSERT INTO teammember (user_id, team_id)
    SELECT {ORGANIZATIONS} + 1 + (t.id * 10 + m) % {USERS}, t.id FROM team t, generate_series(0, 9) m;
INSERT INTO repository (namespace_user_id, name, visibility, description)
    SELECT (n - 1) % {ORGANIZATIONS} + 1, 'repo' || (n - 1) / {ORGANIZATIONS} + 1,
           CASE n % 3 WHEN 0 THEN 'private' ELSE 'public' END,
           'Images of component ' || n FROM generate_series(1, {REPOSITORIES}) n;
INSERT INTO repositorypermission (repository_id, user_id, role)
    SELECT r.id, {ORGANIZATIONS} + 1 + (r.id * 3 + p) % {USERS}, CASE p WHEN 0 THEN 'admin' ELSE 'read' END
    FROM repository r, generate_series(0, 2) p;
INSERT INTO repositorypermission (repository_id, team_id, role)
    SELECT r.id, (r.namespace_user_id - 1) * {TEAMS_EACH} + 1, 'write' FROM repository r;
INSERT INTO repositoryactioncount (repository_id, count) SELECT id, id % 1000 FROM repository;
INSERT INTO manifest (id, repository_id, digest, media_type, manifest_bytes)
    SELECT id, repository_id, 'sha256:' || encode(sha256(convert_to(text, 'UTF8')), 'hex'),
           '{MEDIA_TYPE}', text
    FROM (SELECT (r.id - 1) * {MANIFESTS_EACH} + m + 1 AS id, r.id AS repository_id, format(
            '{{"schemaVersion":2,"mediaType":"{MEDIA_TYPE}","config":{{"mediaType":"{CONFIG_TYPE}",'
            '"size":%s,"digest":"%s"}},"layers":[{{"mediaType":"{LAYER_TYPE}","size":%s,"digest":"%s"}},'
            '{{"mediaType":"{LAYER_TYPE}","size":%s,"digest":"%s"}}],"annotations":{{"n":"%s"}}}}',
            c.image_size, c.content_checksum, a.image_size, a.content_checksum,
            b.image_size, b.content_checksum, r.id * {MANIFESTS_EACH} + m) AS text
          FROM repository r CROSS JOIN generate_series(0, {MANIFESTS_EACH - 1}) m
          JOIN imagestorage c ON c.id = (r.id * 7 + m) % {BLOBS} + 1
          JOIN imagestorage a ON a.id = (r.id * 7 + m + 1) % {BLOBS} + 1
          JOIN imagestorage b ON b.id = (r.id * 7 + m + 2) % {BLOBS} + 1) AS texts;
SELECT setval('manifest_id_seq', {REPOSITORIES * MANIFESTS_EACH});
INSERT INTO manifestblob (manifest_id, blob_id)
    SELECT m.id, (m.repository_id * 7 + (m.id - 1) % {MANIFESTS_EACH} + k) % {BLOBS} + 1
    FROM manifest m, generate_series(0, 2) k;
INSERT INTO tag (name, repository_id, manifest_id, lifetime_start_ms)
    SELECT CASE t WHEN 0 THEN 'latest' ELSE 'v' || t END, r.id,
           (r.id - 1) * {MANIFESTS_EACH} + t % {MANIFESTS_EACH} + 1, 1700000000000 + r.id * 1000 + t
    FROM repository r, generate_series(0, {TAGS_EACH - 1}) t;
INSERT INTO tag (name, repository_id, manifest_id, lifetime_start_ms, lifetime_end_ms)
    SELECT 'old', r.id, (r.id - 1) * {MANIFESTS_EACH} + 1, 1690000000000, 1700000000000 FROM repository r;
INSERT INTO advisory (name, package, fixed_in, severity)
    SELECT 'CVE-2030-' || lpad(n::text, 4, '0'), 'package' || n * 7 % 90,
           n % 5 || '.' || n % 17 || '.' || n % 29,
           CASE n % 3 WHEN 0 THEN 'High' WHEN 1 THEN 'Medium' ELSE 'Low' END
    FROM generate_series(1, {ADVISORIES}) n;
INSERT INTO logentry (kind, performer, repository_id, datetime, ip, metadata_json)
    SELECT CASE n % 4 WHEN 0 THEN 'push_repo' WHEN 1 THEN 'create_tag' ELSE 'pull_repo' END,
           'user' || n % {USERS} + 1, (n * 7919::bigint) % {REPOSITORIES} + 1,
           now() - n * interval '1 second', '10.0.' || n % 256 || '.' || n % 250,
           '{{"tag": "v' || n % {TAGS_EACH} || '", "username": "user' || n % {USERS} + 1 || '"}}'
    FROM generate_series(1, {LOG_ENTRIES}) n;
"""  # noqa: S608 - only constants of this module are put in


def fill(settings: Settings) -> None:
    """Create tables, rows and blobs; raises `DemoError` when the database refuses."""
    storage = Storage(settings.directory)
    started = time.monotonic()
    try:
        with psycopg2.connect(settings.dsn) as connection, connection.cursor() as cursor:
            cursor.execute("SET synchronous_commit = off; SET work_mem = '32MB'")
            cursor.execute(TABLES)
            if "missing_index" not in settings.weak:
                cursor.execute(LOG_INDEX)
            psycopg2.extras.execute_values(
                cursor, "INSERT INTO imagestorage (content_checksum, image_size) VALUES %s", _blobs(storage)
            )
            cursor.execute(ROWS)
            salt = os.urandom(16)
            cursor.execute(
                "INSERT INTO oauthaccesstoken (token_name, token_salt, token_hash, authorized_user_id)"
                ' SELECT %s, %s, %s, id FROM "user" WHERE username = %s',
                (token_name(DEMO_TOKEN), salt, hash_token(DEMO_TOKEN, salt), "user1"),
            )
        with psycopg2.connect(settings.dsn) as connection, connection.cursor() as cursor:
            # By name: a plain ANALYZE complains about each shared catalog that only a superuser may read.
            cursor.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
            for (table,) in cursor.fetchall():
                cursor.execute(sql.SQL("ANALYZE {}").format(sql.Identifier(table)))
    except psycopg2.Error as error:
        raise DemoError(f"the tables could not be filled: {str(error).splitlines()[0]}") from error
    log.info("filled", extra={"seconds": round(time.monotonic() - started, 1)})


def _blobs(storage: Storage) -> list[tuple[str, int]]:
    rows = []
    for number in range(BLOBS):
        content = hashlib.shake_128(number.to_bytes(2, "big")).digest(BLOB_BYTES + number)
        rows.append((storage.put(content), len(content)))
    return rows


def main() -> int:
    """Run as a program; returns its exit code."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s")
    try:
        fill(Settings.from_environment(os.environ))
    except Failure as failure:
        print(f"error: {failure}", file=sys.stderr)
        if failure.next_step:
            print(f" next: {failure.next_step}", file=sys.stderr)
        return failure.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
