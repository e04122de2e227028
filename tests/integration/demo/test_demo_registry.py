"""The demo's registry under real gunicorn workers on a real Postgres."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg2

from integration.demo.registry_process import (
    RegistryProcess,
    environment,
    run_program,
    wait_until,
)
from quayscope.load.demo.postgres import DemoPostgres
from quayscope.load.demo.processes import cpu_seconds
from quayscope.load.demo.registry import weak
from quayscope.load.demo.registry.application import MAX_BODY_BYTES, create
from quayscope.load.demo.registry.auth import DEMO_TOKEN
from quayscope.load.demo.registry.ledger import ledger_cpu, read_ledgers
from quayscope.load.demo.registry.settings import Settings

BEARER = {"Authorization": f"Bearer {DEMO_TOKEN}"}


@contextmanager
def rows(postgres: DemoPostgres, statement: str) -> Iterator[list[tuple[Any, ...]]]:
    """Yield the rows of a statement."""
    connection = psycopg2.connect(postgres.dsn)
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(statement)
            yield cursor.fetchall()
    finally:
        connection.close()


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def test_repositories_live_and_end(registry: RegistryProcess) -> None:
    """A repository is created, listed, read, changed, shared and deleted; each wrong request is refused."""
    ask = registry.ask
    new = {"namespace": "org1", "repository": "life", "visibility": "private"}
    assert ask("POST", "/api/v1/repository", new).status == 201
    assert ask("POST", "/api/v1/repository", new).status == 400
    assert ask("POST", "/api/v1/repository", {**new, "namespace": "nobody"}).status == 404
    assert ask("POST", "/api/v1/repository", {**new, "repository": "../x"}).status == 400
    assert ask("POST", "/api/v1/repository", b"{").status == 400
    listed = ask("GET", "/api/v1/repository?namespace=org1&limit=5").json["repositories"]
    assert [row["name"] for row in listed][:1] == ["life"]
    assert listed[1]["last_tag"] == "v19"
    assert len(listed[1]["permissions"]) == 3
    assert ask("GET", "/api/v1/repository").status == 400
    assert ask("GET", "/api/v1/repository?namespace=org1&limit=1e9").status == 400
    assert ask("GET", "/api/v1/repository/org1/life").json["is_public"] is False
    assert ask("GET", "/api/v1/repository/org1/gone").status == 404
    assert ask("PUT", "/api/v1/repository/org1/life", {"description": "changed"}).status == 200
    assert ask("PUT", "/api/v1/repository/org1/life", {"description": "\0"}).status == 400
    assert ask("GET", "/api/v1/repository/org1/life").json["description"] == "changed"
    permissions = "/api/v1/repository/org1/life/permissions"
    assert ask("PUT", f"{permissions}/user/user7", {"role": "write"}).status == 200
    assert ask("PUT", f"{permissions}/user/user7", {"role": "owner"}).status == 400
    assert ask("PUT", f"{permissions}/user/nobody", {"role": "read"}).status == 404
    assert ask("GET", f"{permissions}/user/user7").json == {"name": "user7", "role": "write"}
    assert set(ask("GET", f"{permissions}/user/").json["permissions"]) == {"user1", "user7"}
    assert ask("PUT", f"{permissions}/team/team1", {"role": "read"}).status == 200
    assert ask("DELETE", f"{permissions}/user/user7").status == 204
    assert ask("DELETE", f"{permissions}/user/user7").status == 404
    logs = ask("GET", "/api/v1/repository/org1/life/logs").json["logs"]
    assert [entry["kind"] for entry in logs] == ["set_repo_description", "create_repo"]
    assert ask("DELETE", "/api/v1/repository/org1/life").status == 204
    assert ask("DELETE", "/api/v1/repository/org1/life").status == 404


def test_people_and_teams(registry: RegistryProcess) -> None:
    """Users are read by name and by token; a team is made, filled, listed and deleted."""
    ask = registry.ask
    assert ask("GET", "/api/v1/user/", headers=BEARER).json == {"username": "user1", "anonymous": False}
    for wrong in ({}, {"Authorization": "Bearer demo.wrong"}, {"Authorization": "Basic x"}):
        assert ask("GET", "/api/v1/user/", headers=wrong).status == 401
    assert ask("GET", "/api/v1/users/org2").json == {"username": "org2", "is_organization": True}
    assert ask("GET", "/api/v1/users/nobody").status == 404
    team = "/api/v1/organization/org2/team/fresh"
    assert ask("PUT", team, {"role": "creator"}).status == 200
    assert ask("PUT", team, {"role": "king"}).status == 400
    assert ask("PUT", "/api/v1/organization/user1/team/fresh", {"role": "member"}).status == 404
    assert ask("PUT", f"{team}/members/user3").status == 200
    assert ask("PUT", f"{team}/members/user3").status == 200
    assert ask("GET", f"{team}/members").json["members"] == [{"name": "user3", "kind": "user"}]
    assert ask("DELETE", f"{team}/members/user3").status == 204
    assert ask("DELETE", f"{team}/members/user3").status == 404
    assert ask("DELETE", team).status == 204
    assert ask("GET", f"{team}/members").status == 404


def push_blob(registry: RegistryProcess, repository: str, content: bytes) -> str:
    """Upload a blob in two parts; returns its digest."""
    begun = registry.ask("POST", f"/v2/{repository}/blobs/uploads/")
    assert begun.status == 202
    part = registry.ask("PATCH", begun.headers["location"], content[:10])
    assert (part.status, part.headers["range"]) == (202, "0-9")
    put = registry.ask("PUT", f"{begun.headers['location']}?digest={digest_of(content)}", content[10:])
    assert put.status == 201
    assert put.headers["docker-content-digest"] == digest_of(content)
    return digest_of(content)


def test_push_tag_and_pull(registry: RegistryProcess) -> None:
    """An image is pushed, found under tag and digest, tagged, scanned and pulled; strangers are refused."""
    ask, repository = registry.ask, "org3/repo1"
    layer, config = (
        push_blob(registry, repository, os.urandom(5000)),
        push_blob(registry, repository, b"{}" * 20),
    )
    manifest = json.dumps(
        {"schemaVersion": 2, "config": {"digest": config}, "layers": [{"digest": layer}]}
    ).encode()
    address = f"/v2/{repository}/manifests"
    put = ask("PUT", f"{address}/mine", manifest, {"Content-Type": "application/x.test"})
    assert put.status == 201
    digest = put.headers["docker-content-digest"]
    assert ask("PUT", f"{address}/{digest}", manifest).status == 201
    assert ask("PUT", f"{address}/{layer}", manifest).status == 400
    assert (
        ask("PUT", "/v2/org4/repo1/manifests/mine", manifest).json["errors"][0]["code"]
        == "MANIFEST_BLOB_UNKNOWN"
    )
    for broken in (b"", b"\xff\xfe", b"[]", b'{"config": 1, "layers": [1]}', b"[" * 100_000):
        assert ask("PUT", f"{address}/mine", broken).json["errors"][0]["code"] == "MANIFEST_INVALID"
    for reference in ("mine", digest):
        pulled = ask("GET", f"{address}/{reference}")
        assert (pulled.status, pulled.content) == (200, manifest)
        assert ask("HEAD", f"{address}/{reference}").headers["docker-content-digest"] == digest
    assert ask("GET", f"{address}/unknown").status == 404
    assert digest_of(ask("GET", f"/v2/{repository}/blobs/{layer}").content) == layer
    head = ask("HEAD", f"/v2/{repository}/blobs/{layer}")
    assert (head.status, head.headers["content-length"], head.content) == (200, "5000", b"")
    assert ask("GET", f"/v2/org4/repo1/blobs/{layer}").status == 404
    assert "mine" in ask("GET", f"/v2/{repository}/tags/list").json["tags"]
    tag = f"/api/v1/repository/{repository}/tag"
    assert ask("PUT", f"{tag}/yours", {"manifest_digest": digest}).status == 201
    assert ask("PUT", f"{tag}/yours", {"manifest_digest": layer}).status == 404
    newest = ask("GET", f"{tag}/?limit=2").json
    assert [entry["name"] for entry in newest["tags"]] == ["yours", "mine"]
    assert newest["has_additional"] is True
    assert ask("DELETE", f"{tag}/yours").status == 204
    assert ask("DELETE", f"{tag}/yours").status == 404
    report = ask("GET", f"/api/v1/repository/{repository}/manifest/{digest}/security").json
    assert report["data"]["Layer"]["Features"]
    assert ask("GET", f"/api/v1/repository/{repository}/manifest/{layer}/security").status == 404


def test_uploads_that_go_wrong(registry: RegistryProcess) -> None:
    """Another digest, a malformed one, an unknown upload and an abandoned one are refused by their codes."""
    ask, base = registry.ask, "/v2/org3/repo2/blobs/uploads/"
    upload = ask("POST", base).headers["location"]
    assert ask("PUT", f"{upload}?digest=sha256:../x", b"").json["errors"][0]["code"] == "DIGEST_INVALID"
    assert (
        ask("PUT", f"{upload}?digest={digest_of(b'a')}", b"b").json["errors"][0]["code"] == "DIGEST_INVALID"
    )
    assert ask("PATCH", upload, b"x").json["errors"][0]["code"] == "BLOB_UPLOAD_UNKNOWN"
    other = ask("POST", base).headers["location"]
    assert ask("DELETE", other).status == 204
    assert ask("PATCH", other, b"x").status == 404
    assert ask("POST", "/v2/org3/gone/blobs/uploads/").json["errors"][0]["code"] == "NAME_UNKNOWN"


def test_catalog_has_pages(registry: RegistryProcess) -> None:
    """The catalog goes on where its Link points to, and ends without one."""
    first = registry.ask("GET", "/v2/_catalog?n=500")
    following = first.headers["link"].partition(">")[0].lstrip("<")
    names = first.json["repositories"]
    while following:
        page = registry.ask("GET", following)
        names += page.json["repositories"]
        following = page.headers.get("link", "").partition(">")[0].lstrip("<")
    assert names == sorted(set(names))
    assert len(names) > 1300


def test_wrong_requests_are_answered(registry: RegistryProcess) -> None:
    """Unknown routes, wrong methods, unstorable characters and bodies too large get a 4xx."""
    assert registry.ask("GET", "/nothing").status == 404
    assert registry.ask("POST", "/v2/").status == 405
    assert registry.ask("GET", "/v2/org1/%00/tags/list").status == 400
    assert registry.ask("GET", "/v2/_catalog?last=%00").status == 400
    upload = registry.ask("POST", "/v2/org3/repo2/blobs/uploads/").headers["location"]
    assert registry.ask("PATCH", upload, bytes(MAX_BODY_BYTES + 1)).status == 413
    assert registry.ask("PATCH", upload, b"x").status == 202


def test_the_ledger_knows_every_endpoint(registry: RegistryProcess, postgres: DemoPostgres) -> None:
    """Each route answers even to senseless names, and has its account on disk within seconds."""
    app = create(Settings(postgres.dsn, registry.directory, weak.SWITCHES))
    routes = {
        (method, rule.rule)
        for rule in app.url_map.iter_rules()
        for method in rule.methods or ()
        if method != "OPTIONS"
    }
    assert len(routes) > 35
    for method, rule in routes:
        assert registry.ask(method, re.sub("<[^>]*>", "senseless", rule)).status < 500
    names = {f"{method} {rule}" for method, rule in routes}
    wait_until(lambda: names <= set(read_ledgers(registry.directory)), 5)


def settle(registry: RegistryProcess) -> None:
    """Wait until each worker has written what it did: it looks once a second and writes at most as often."""
    time.sleep(2.2)


def test_the_ledger_agrees_with_the_kernel(registry: RegistryProcess) -> None:
    """The ledger's CPU is most of what the kernel saw the workers use, and never more."""
    paths = ("/api/v1/repository?namespace=org5", "/api/v1/user/", "/v2/_catalog")
    settle(registry)
    before = ledger_cpu(registry.directory)
    cpu = sum(cpu_seconds(pid) for pid in registry.workers())
    for _ in range(40):
        for path in paths:
            assert registry.ask("GET", path, headers=BEARER).status == 200
    used = sum(cpu_seconds(pid) for pid in registry.workers()) - cpu

    settle(registry)
    counted = sum(ledger_cpu(registry.directory).values()) - sum(before.values())
    assert used > 0.5
    assert 0.6 * used <= counted <= used


def test_the_hot_row_never_deadlocks(registry: RegistryProcess, postgres: DemoPostgres) -> None:
    """Pulls and pushes of one tag at the same time in both workers all succeed, and each pull is counted."""
    address = "/v2/org6/repo1/manifests/latest"
    manifest = registry.ask("GET", address).content

    def one(number: int) -> int:
        if number % 6 == 0:
            return registry.ask("PUT", address, manifest).status
        if number % 6 == 1:
            tag = {"manifest_digest": digest_of(manifest)}
            return registry.ask("PUT", "/api/v1/repository/org6/repo1/tag/latest", tag).status
        return registry.ask("GET", address).status

    counter = (
        "SELECT c.count FROM repositoryactioncount c JOIN repository r ON r.id = c.repository_id"
        " JOIN \"user\" u ON u.id = r.namespace_user_id WHERE u.username = 'org6' AND r.name = 'repo1'"
    )
    with rows(postgres, counter) as found:
        before = found[0][0]
    with ThreadPoolExecutor(12) as threads:
        statuses = list(threads.map(one, range(120)))
    assert set(statuses) == {200, 201}
    with rows(postgres, counter) as found:
        assert found[0][0] == before + statuses.count(200)
    assert "deadlock" not in postgres.log_path.read_text()


def test_lost_connections_are_replaced(registry: RegistryProcess, postgres: DemoPostgres) -> None:
    """When the server ends the pools' connections, requests get 503 at worst, and soon 200 again."""
    end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'registry'"
    with rows(postgres, end) as found:
        assert found[0][0] >= 1
    statuses = [registry.ask("GET", "/api/v1/users/user1").status for _ in range(30)]
    assert set(statuses) <= {200, 503}
    assert statuses[-5:] == [200] * 5


def test_switches_change_the_cost_and_not_the_answer(postgres: DemoPostgres, directory: Path) -> None:
    """With no weak spot on, the same requests get the same answers."""
    answers = []
    for switches in (weak.SWITCHES, frozenset[str]()):
        client = create(Settings(postgres.dsn, directory, switches)).test_client()
        pulled = client.get("/v2/org7/repo1/manifests/latest")
        digest = pulled.headers["Docker-Content-Digest"]
        addresses = (
            "/api/v1/repository?namespace=org7&limit=50",
            f"/api/v1/repository/org7/repo1/manifest/{digest}/security",
            "/api/v1/organization/org7/team/team1/members",
        )
        answers.append([pulled.data, *(client.get(address).json for address in addresses)])
        assert [client.get("/api/v1/user/", headers=BEARER).status_code for _ in range(2)] == [200, 200]
    assert answers[0] == answers[1]


def test_an_unknown_switch_stops_the_programs(postgres: DemoPostgres, directory: Path) -> None:
    """Seed and housekeeping say which switch is unknown and which there are, without a traceback."""
    for program in ("seed", "background"):
        done = run_program(program, environment(postgres.dsn, directory, "no_such_switch"))
        assert done.returncode == 3
        assert "no_such_switch" in done.stderr
        assert " next: " in done.stderr
        assert "Traceback" not in done.stderr


def test_workers_write_their_ledger_at_exit(postgres: DemoPostgres, directory: Path) -> None:
    """A request right before the end is in the ledger, and gunicorn ends at once with exit code 0."""
    own = directory / "second"
    own.mkdir()
    second = RegistryProcess(postgres.dsn, own, "none")
    for _ in range(3):
        assert second.ask("GET", "/api/v1/users/user1").status == 200
    started = time.monotonic()
    assert second.stop() == 0
    assert time.monotonic() - started < 5
    assert read_ledgers(own)["GET /api/v1/users/<username>"].requests == 3
    assert "Traceback" not in second.log()
