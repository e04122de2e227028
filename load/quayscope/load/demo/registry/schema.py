"""The registry's tables, in the spirit of Quay's and under its names."""

from __future__ import annotations

__all__ = ["LOG_INDEX", "TABLES"]

TABLES = """
CREATE TABLE "user" (
    id serial PRIMARY KEY,
    username text NOT NULL UNIQUE,
    email text NOT NULL,
    organization boolean NOT NULL DEFAULT false,
    enabled boolean NOT NULL DEFAULT true
);
CREATE TABLE oauthaccesstoken (
    id serial PRIMARY KEY,
    token_name text NOT NULL UNIQUE,
    token_salt bytea NOT NULL,
    token_hash bytea NOT NULL,
    authorized_user_id integer NOT NULL REFERENCES "user"
);
CREATE TABLE team (
    id serial PRIMARY KEY,
    name text NOT NULL,
    organization_id integer NOT NULL REFERENCES "user",
    role text NOT NULL,
    description text NOT NULL DEFAULT '',
    UNIQUE (organization_id, name)
);
CREATE TABLE teammember (
    id serial PRIMARY KEY,
    user_id integer NOT NULL REFERENCES "user",
    team_id integer NOT NULL REFERENCES team ON DELETE CASCADE,
    UNIQUE (team_id, user_id)
);
CREATE TABLE repository (
    id serial PRIMARY KEY,
    namespace_user_id integer NOT NULL REFERENCES "user",
    name text NOT NULL,
    visibility text NOT NULL,
    kind text NOT NULL DEFAULT 'image',
    description text NOT NULL DEFAULT '',
    UNIQUE (namespace_user_id, name)
);
CREATE TABLE repositorypermission (
    id serial PRIMARY KEY,
    repository_id integer NOT NULL REFERENCES repository ON DELETE CASCADE,
    user_id integer REFERENCES "user",
    team_id integer REFERENCES team ON DELETE CASCADE,
    role text NOT NULL,
    UNIQUE (repository_id, user_id),
    UNIQUE (repository_id, team_id),
    CHECK ((user_id IS NULL) <> (team_id IS NULL))
);
CREATE INDEX ON repositorypermission (user_id);
CREATE INDEX ON repositorypermission (team_id);
CREATE TABLE repositoryactioncount (
    repository_id integer PRIMARY KEY REFERENCES repository ON DELETE CASCADE,
    count bigint NOT NULL DEFAULT 0
);
CREATE TABLE imagestorage (
    id serial PRIMARY KEY,
    content_checksum text NOT NULL UNIQUE,
    image_size bigint NOT NULL
);
CREATE TABLE blobupload (
    id serial PRIMARY KEY,
    uuid text NOT NULL UNIQUE,
    repository_id integer NOT NULL REFERENCES repository ON DELETE CASCADE,
    byte_count bigint NOT NULL DEFAULT 0,
    created timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE uploadedblob (
    repository_id integer NOT NULL REFERENCES repository ON DELETE CASCADE,
    blob_id integer NOT NULL REFERENCES imagestorage,
    PRIMARY KEY (repository_id, blob_id)
);
CREATE TABLE manifest (
    id serial PRIMARY KEY,
    repository_id integer NOT NULL REFERENCES repository ON DELETE CASCADE,
    digest text NOT NULL,
    media_type text NOT NULL,
    manifest_bytes text NOT NULL,
    UNIQUE (repository_id, digest)
);
CREATE TABLE manifestblob (
    manifest_id integer NOT NULL REFERENCES manifest ON DELETE CASCADE,
    blob_id integer NOT NULL REFERENCES imagestorage,
    PRIMARY KEY (manifest_id, blob_id)
);
CREATE TABLE tag (
    id serial PRIMARY KEY,
    name text NOT NULL,
    repository_id integer NOT NULL REFERENCES repository ON DELETE CASCADE,
    manifest_id integer NOT NULL REFERENCES manifest ON DELETE CASCADE,
    lifetime_start_ms bigint NOT NULL,
    lifetime_end_ms bigint
);
CREATE UNIQUE INDEX tag_alive ON tag (repository_id, name) WHERE lifetime_end_ms IS NULL;
CREATE INDEX ON tag (lifetime_end_ms) WHERE lifetime_end_ms IS NOT NULL;
CREATE INDEX ON tag (manifest_id);
CREATE TABLE logentry (
    id bigserial PRIMARY KEY,
    kind text NOT NULL,
    performer text NOT NULL,
    repository_id integer NOT NULL,
    datetime timestamptz NOT NULL DEFAULT now(),
    ip text NOT NULL,
    metadata_json text NOT NULL DEFAULT '{}'
);
CREATE TABLE advisory (
    id serial PRIMARY KEY,
    name text NOT NULL,
    package text NOT NULL,
    fixed_in text NOT NULL,
    severity text NOT NULL
);
CREATE TABLE logsummary (
    kind text NOT NULL,
    tag text NOT NULL,
    entries bigint NOT NULL,
    PRIMARY KEY (kind, tag)
);
"""

LOG_INDEX = "CREATE INDEX logentry_repository ON logentry (repository_id, datetime);\n"
"""Left out where the weak spot `missing_index` is on."""
