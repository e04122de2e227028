"""Destinations: what is refused before anything is sent, and TLS against real servers."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

import quayscope.relay
from certificates import Certificates, make_certificates
from quayscope.profile import PushFailed
from quayscope.relay import BadDestination, uplink
from quayscope.relay.destination import Destination
from quayscope.relay.uplink import Uplink
from receiving_server import ReceivingServer

Serve = Callable[[ssl.SSLContext], ReceivingServer]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """One set for all: making keys takes time."""
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start servers; all end with the test."""
    running: list[ReceivingServer] = []

    def start(tls: ssl.SSLContext) -> ReceivingServer:
        running.append(ReceivingServer(tls))
        return running[-1]

    yield start
    for one in running:
        one.stop()


def post(destination: Destination) -> None:
    client = destination.client()
    try:
        client.post("/v1/metrics", b"x", "application/x-protobuf")
    finally:
        client.close()


def blamed(**fields: Any) -> tuple[str, str]:
    """Which field is to blame for a destination, and why."""
    with pytest.raises(BadDestination) as refused:
        Destination(**{"url": "https://host.test:4040", **fields}).client()
    assert refused.value.exit_code == 2
    return refused.value.field, str(refused.value)


def test_a_custom_ca_is_believed(certificates: Certificates, serve: Serve) -> None:
    """A server with a certificate of that CA is sent to; without the CA it is not."""
    server = serve(certificates.plain_server)
    post(Destination(server.url, ca_file=certificates.ca))
    assert [got.certified for got in server.taken] == [False]
    with pytest.raises(PushFailed, match="CERTIFICATE_VERIFY_FAILED") as refused:
        post(Destination(server.url))
    assert "CA file" in refused.value.next_step
    assert refused.value.retryable
    assert len(server.seen) == 1


def test_a_certificate_must_have_the_hosts_name(certificates: Certificates, serve: Serve) -> None:
    """A good certificate of somebody else is not enough."""
    server = serve(certificates.plain_server)
    with pytest.raises(PushFailed, match="CERTIFICATE_VERIFY_FAILED"):
        post(Destination(server.url.replace("127.0.0.1", "localhost"), ca_file=certificates.ca))
    assert server.seen == []


def test_a_client_certificate_is_shown(certificates: Certificates, serve: Serve, tmp_path: Path) -> None:
    """A server that asks for one gets it, from two files or one; without it the push fails and says why."""
    server = serve(certificates.asking_server)
    given = Destination(server.url, ca_file=certificates.ca)
    post(given._replace(cert_file=certificates.client, key_file=certificates.client_key))
    both = tmp_path / "both.pem"
    both.write_bytes(certificates.client.read_bytes() + certificates.client_key.read_bytes())
    post(given._replace(cert_file=both))
    assert [got.certified for got in server.taken] == [True, True]
    with pytest.raises(PushFailed) as refused:
        post(given)
    assert refused.value.status == 0
    assert len(server.seen) == 2


def test_a_rotated_certificate_is_read_again(
    certificates: Certificates, serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a failure of TLS the files are read anew, and what was held goes through."""
    monkeypatch.setattr(uplink, "_FIRST_BACKOFF_S", 0.02)
    monkeypatch.setattr(uplink, "_LONGEST_BACKOFF_S", 0.1)
    server = serve(certificates.plain_server)
    ca = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(ca)
    sender = Uplink(Destination(server.url, ca_file=ca))
    sender.start()
    sender.metrics(b"\x0a\x00")
    retried = 0
    while retried < 2:
        retried += sender.take_counts()["retried"]
    ca.write_bytes(certificates.ca.read_bytes())
    assert sender.close(10.0) == 0
    assert sender.take_counts()["pushed"] == 1


@pytest.mark.parametrize(
    "url", ["http://10.0.0.1:4040", "http://collector:4040", "http://[2001:db8::1]:4040"]
)
def test_plain_http_stays_on_loopback(url: str) -> None:
    """Beyond loopback it takes TLS, or a flag that says what it is."""
    assert blamed(url=url)[0] == "insecure"
    Destination(url, insecure=True).client()
    Destination(url.replace("http:", "https:")).client()


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://localhost:1", "http://[::1]:1"])
def test_loopback_is_allowed(url: str) -> None:
    """Loopback needs no flag."""
    Destination(url).client()


@pytest.mark.parametrize(
    "url",
    [
        "collector:4040",
        "ftp://x",
        "",
        "http://",
        "http://host:hunter2",
        "http://[hunter2",
        "https://quay:hunter2@host",
        "https://hunter2@host",
        "https://host/?token=hunter2",
    ],
)
def test_no_address(url: str) -> None:
    """What is no address, or carries a secret, is refused and not repeated."""
    field, why = blamed(url=url)
    assert field == "url"
    assert "hunter2" not in why


def test_files_that_cannot_be_used(certificates: Certificates, tmp_path: Path) -> None:
    """Each missing or senseless file is named, with the field to blame, and its content is not."""
    missing, broken = tmp_path / "none", tmp_path / "broken"
    broken.write_text("hunter2")
    for field in ("token_file", "basic_auth_file", "ca_file", "cert_file"):
        found, why = blamed(**{field: missing})
        assert (found, str(missing) in why) == (field, True)
    for field in ("basic_auth_file", "ca_file", "cert_file"):
        found, why = blamed(**{field: broken})
        assert (found, str(broken) in why, "hunter2" in why) == (field, True, False)
    broken.write_bytes(b"\xff\xfe")
    assert blamed(token_file=broken)[0] == "token_file"
    broken.write_text("two words")
    assert blamed(token_file=broken)[0] == "token_file"
    assert blamed(tenant="two words")[0] == "tenant"
    assert blamed(cert_file=certificates.client)[0] == "cert_file"
    assert blamed(key_file=certificates.client_key)[0] == "cert_file"
    assert blamed(cert_file=certificates.client, key_file=missing)[0] == "cert_file"


def test_certificates_need_tls(certificates: Certificates) -> None:
    """A CA or a certificate beside a plain address is a mistake, not something to pass over."""
    assert blamed(url="http://127.0.0.1:1", ca_file=certificates.ca)[0] == "ca_file"
    assert blamed(url="http://127.0.0.1:1", cert_file=certificates.client)[0] == "cert_file"


def test_a_locked_key_is_refused_without_asking(certificates: Certificates, tmp_path: Path) -> None:
    """Nobody sits at the terminal to be asked for a key's password: it is an error at once."""
    locked = tmp_path / "locked.key"
    key = serialization.load_pem_private_key(certificates.client_key.read_bytes(), None)
    form, container = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    locked.write_bytes(key.private_bytes(form, container, serialization.BestAvailableEncryption(b"x")))
    code = (
        "import os, sys; sys.path[0:0] = [sys.argv[1]]\n"
        "os.open(os.ttyname(0), os.O_RDWR)\n"  # now the process has a terminal that could be asked on
        "from pathlib import Path\n"
        "from quayscope.relay.destination import Destination\n"
        "from quayscope.relay.errors import BadDestination\n"
        "try: Destination('https://x', cert_file=Path(sys.argv[2]), key_file=Path(sys.argv[3])).client()\n"
        "except BadDestination as error: print(error.field)\n"
    )
    root = str(Path(quayscope.relay.__path__[0]).parents[1])
    master, terminal = os.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, root, certificates.client, locked],
            stdin=terminal,
            capture_output=True,
            text=True,
            timeout=30,
            start_new_session=True,
        )
    finally:
        os.close(master)
        os.close(terminal)
    assert (done.stdout, done.stderr) == ("cert_file\n", "")
