"""With tokens and TLS: who may attach, capture and read; `quayscope now` and `go tool pprof` included."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
import trustme

from integration.collector.running_collector import RunningCollector, wait_for
from integration.control.pods import Sidecar, burning, load, queries
from open_folders import made_open
from quayscope.load.demo.postgres import DemoPostgres
from quayscope.profile import pprof

TOKENS = "sidecars write s-secret\ngrafana read r-secret\nalice read,capture a-secret\n"


class Guarded(NamedTuple):
    """A collector that speaks TLS and asks for tokens, a pod that is attached to it, and the CA."""

    collector: RunningCollector
    ca: Path
    directory: Path

    def get(
        self, path: str, token: str = "", method: str = "GET", body: bytes | None = None
    ) -> tuple[int, bytes]:
        """Ask over TLS: status and body."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        asked = urllib.request.Request(self.collector.http + path, body, headers, method=method)
        try:
            with urllib.request.urlopen(
                asked, timeout=30, context=ssl.create_default_context(cafile=self.ca)
            ) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def trusted(self) -> tuple[str, ...]:
        """What a sidecar needs to attach."""
        token = str(self.directory / "sidecar-token")
        control = f"https://{self.collector.grpc}"
        return ("--control", control, "--token-file", token, "--ca-file", str(self.ca))

    def attached(self, pod: str) -> bool:
        """Whether a pod is attached with targets and its clock is known."""
        pods = json.loads(self.get("/api/v1/targets", "r-secret")[1])["pods"]
        return any(one["pod"] == pod and one["round_trip"] and one["targets"] for one in pods)

    def go_pprof(self, path: str, user: str, temporary: Path) -> subprocess.CompletedProcess[str]:
        """Run Go's pprof on a path, `user` before the host."""
        go = Path("/usr/local/go/bin/go")
        url = self.collector.http.replace("://", f"://{user}") + path
        return subprocess.run(
            [str(go) if go.exists() else "go", "tool", "pprof", "-top", "-cum", url],
            capture_output=True,
            text=True,
            timeout=150,  # newer Go builds the tool when it is first asked for
            env={**os.environ, "PPROF_TMPDIR": str(temporary), "SSL_CERT_FILE": str(self.ca)},
        )

    def now(self, *arguments: str, token: str = "a-secret") -> list[str]:
        """A `quayscope now` command."""
        file = self.directory / f"token-{token}"
        file.write_text(token + "\n")
        command = [sys.executable, "-m", "quayscope.cli.main", "now", "--collector", self.collector.http]
        return [*command, "--token-file", str(file), "--ca-file", str(self.ca), "--no-open", *arguments]


ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """All of it, and a program to capture."""
    directory = tmp_path_factory.mktemp("guarded")
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1", "localhost")
    ca, certificate, key = (directory / name for name in ("ca.pem", "server.pem", "server.key"))
    authority.cert_pem.write_to_path(ca)
    certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(key)
    (directory / "tokens").write_text(TOKENS)
    (directory / "sidecar-token").write_text("s-secret\n")
    collector = RunningCollector(
        directory, "--tokens", str(directory / "tokens"),
        "--tls-certificate", str(certificate), "--tls-key", str(key),
    ).start()  # fmt: skip
    try:
        with burning() as (target,):
            collector.grpc = f"127.0.0.1:{collector.grpc.rpartition(':')[2]}"
            found = Guarded(collector, ca, directory)
            sidecar = Sidecar(
                directory, "guarded-0", collector, "--postgres", "off", "--python", f"{target.pid}=worker",
                *found.trusted(),
            )  # fmt: skip
            try:
                wait_for(lambda: found.attached("guarded-0"), 20)
                yield found
            finally:
                sidecar.stop()
    finally:
        assert collector.stop() == 0


def test_each_scope_opens_its_own_doors(guarded: Guarded) -> None:
    """No token, a wrong one, one without the scope; the page and the health check are open."""
    asked = json.dumps({"seconds": 1}).encode()
    assert guarded.get("/api/v1/health")[0] == 200
    assert guarded.get("/api/v1/targets")[0] == guarded.get("/api/v1/targets", "wrong")[0] == 401
    assert guarded.get("/api/v1/targets", "s-secret")[0] == 403
    assert guarded.get("/api/v1/captures", "r-secret", "POST", asked)[0] == 403
    assert guarded.get("/push.v1.PusherService/Push", "r-secret", "POST", b"")[0] == 403
    assert guarded.get("/targets/guarded-0/debug/pprof/profile?seconds=1", "r-secret")[0] == 403
    status, body = guarded.get("/targets/guarded-0/debug/pprof/profile?seconds=1", "a-secret")
    assert status == 200, body
    assert pprof.decode(body).totals()[1] > 0
    counts = json.loads(guarded.get("/api/v1/status", "r-secret")[1])
    assert (counts["unauthenticated"], counts["forbidden"], counts["faults"]) == (2, 4, 0)
    # The one who asked stands in the log and in the result.
    (capture,) = json.loads(guarded.get("/api/v1/captures", "r-secret")[1])["captures"]
    assert capture["by"] == "alice"
    assert f"capture={capture['id']} by=alice" in (guarded.directory / "log").read_text()


def test_go_tool_pprof_reads_a_postgres(guarded: Guarded, tmp_path: Path) -> None:
    """Over TLS, with a token as the password, as if it were a Go program; nothing without the password."""
    with made_open("guarded") as folder, DemoPostgres(folder / "server") as postgres:
        postmaster = (folder / "server" / "data" / "postmaster.pid").read_text().split()[0]
        database = Sidecar(
            folder,
            "guarded-db",
            guarded.collector,
            "--postgres",
            postmaster,
            *guarded.trusted(),
            environment={"QUAYSCOPE_POSTGRES_DSN": postgres.dsn},
        )
        try:
            with load(queries(postgres.dsn)):
                wait_for(lambda: guarded.attached("guarded-db"), 20)
                path = "/targets/guarded-db/debug/pprof/profile?seconds=1"
                ran = guarded.go_pprof(path, "any:a-secret@", tmp_path)
                refused = guarded.go_pprof(path, "any:wrong@", tmp_path)
        finally:
            database.stop()
    assert ran.returncode == 0, ran.stderr
    print(ran.stdout)
    assert "Type: cpu" in ran.stdout
    assert "quay-database" in ran.stdout
    assert "generate_series" in ran.stdout
    assert refused.returncode != 0
    assert "401" in refused.stderr


def test_now_writes_the_file_and_says_what_is_in_it(guarded: Guarded) -> None:
    """Plain lines where there is no terminal, JSON where it is asked for; refusals with a next step."""
    path = guarded.directory / "result.svg"
    command = guarded.now(
        "--pod", "guarded-0", "--seconds", "3", "--format", "svg", "--json", "-o", str(path)
    )
    ran = subprocess.run(command, capture_output=True, text=True, timeout=40, env=ENVIRONMENT)
    assert ran.returncode == 0, ran.stderr
    said = json.loads(ran.stdout)
    assert (said["state"], said["file"], said["by"]) == ("done", str(path), "alice")
    assert "100%  1 of 1 processes  done" in ran.stderr
    assert b"busy" in path.read_bytes()
    for arguments, token, code, text in (
        (("--service", "nobody"), "a-secret", 3, "no process of an attached pod matches"),
        (("--pod", "guarded-0"), "r-secret", 3, "lacks the scope 'capture'"),
    ):
        ran = subprocess.run(
            guarded.now(*arguments, token=token), capture_output=True, text=True, timeout=40, env=ENVIRONMENT
        )
        assert ran.returncode == code
        assert text in ran.stderr
        assert "Traceback" not in ran.stderr


def test_now_on_a_terminal_is_interrupted(guarded: Guarded) -> None:
    """A bar is drawn, and the capture is cancelled with it."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        guarded.now("--pod", "guarded-0", "--seconds", "60"),
        stderr=theirs,
        stdout=subprocess.PIPE,
        env=ENVIRONMENT,
    )
    os.close(theirs)
    seen = b""
    deadline = time.monotonic() + 20
    while b"1 processes  running" not in seen:
        assert time.monotonic() < deadline, seen
        seen += os.read(ours, 4096)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=20)[0] == b""
    assert process.returncode == 130
    os.close(ours)
    assert b"[" + b"." * 30 + b"]" in seen

    def cancelled() -> Any:
        newest = json.loads(guarded.get("/api/v1/captures", "r-secret")[1])["captures"][0]
        return (newest["state"], newest["cancelled_by"]) == ("cancelled", "alice")

    wait_for(cancelled, 10)


def test_a_sidecar_without_its_token_is_refused(guarded: Guarded, tmp_path: Path) -> None:
    """It says why, goes on trying, and ends in order."""
    sidecar = Sidecar(
        tmp_path, "stranger-0", guarded.collector, "--postgres", "off",
        "--control", f"https://{guarded.collector.grpc}", "--ca-file", str(guarded.ca),
    )  # fmt: skip
    try:
        wait_for(lambda: "UNAUTHENTICATED: a token is needed" in sidecar.log(), 20)
    finally:
        sidecar.stop()


def test_silent_and_plain_clients_keep_nobody_out(guarded: Guarded) -> None:
    """Connections that never shake hands, and plain HTTP on the port of TLS, cost only themselves."""
    host, _, port = guarded.collector.http.partition("//")[2].rpartition(":")
    silent = [socket.create_connection((host, int(port))) for _ in range(5)]
    plain = socket.create_connection((host, int(port)))
    try:
        plain.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        began = time.monotonic()
        assert guarded.get("/api/v1/health")[0] == 200
        assert time.monotonic() - began < 8  # one silent client alone would take ten
        with contextlib.suppress(ConnectionError):
            assert not plain.recv(1000).startswith(b"HTTP/1.1 200")
    finally:
        for connection in (*silent, plain):
            connection.close()
    assert json.loads(guarded.get("/api/v1/status", "r-secret")[1])["faults"] == 0


def test_a_new_certificate_is_taken(guarded: Guarded, tmp_path: Path) -> None:
    """On both ports, without a restart; one that cannot be used changes nothing."""
    certificate, key = guarded.directory / "server.pem", guarded.directory / "server.key"
    before = certificate.read_bytes(), key.read_bytes()
    other = trustme.CA()
    ca = tmp_path / "other.pem"
    other.cert_pem.write_to_path(ca)
    issued = other.issue_cert("127.0.0.1")
    try:
        certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        # The key is still the old one: both are left as they were.
        log = guarded.directory / "log"
        wait_for(
            lambda: (
                guarded.get("/api/v1/health")[0] == 200 and "certificate is not read again" in log.read_text()
            )
        )
        issued.private_key_pem.write_to_path(key)
        renewed = guarded._replace(ca=ca)

        def believed() -> bool:
            with contextlib.suppress(urllib.error.URLError):
                return renewed.get("/api/v1/health")[0] == 200
            return False

        wait_for(believed, 20)
        credentials = grpc.ssl_channel_credentials(ca.read_bytes())
        with grpc.secure_channel(guarded.collector.grpc, credentials) as channel:
            push = channel.unary_unary("/push.v1.PusherService/Push")
            push(b"", timeout=20, metadata=[("authorization", "Bearer s-secret")])
            with pytest.raises(grpc.RpcError, match="UNAUTHENTICATED"):
                push(b"", timeout=20)
    finally:
        certificate.write_bytes(before[0])
        key.write_bytes(before[1])


def test_beyond_loopback_both_are_needed(tmp_path: Path) -> None:
    """TLS without tokens, or none of them, needs a word that says so."""
    command = [sys.executable, "-m", "quayscope.cli.main", "collector", "--listen", "0.0.0.0:0"]
    ran = subprocess.run(
        [*command, "--data", str(tmp_path)], capture_output=True, text=True, timeout=30, env=ENVIRONMENT
    )
    assert ran.returncode == 2
    assert "without TLS and tokens" in ran.stderr
    ran = subprocess.run(
        [*command, "--tls-key", "x"], capture_output=True, text=True, timeout=30, env=ENVIRONMENT
    )
    assert ran.returncode == 2
    assert "go together" in ran.stderr
