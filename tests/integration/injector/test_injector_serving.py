"""The webhook as a program: real TLS, a certificate that changes, clients that say nothing."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trustme
import yaml

from integration.injector.conftest import wait_until
from operator_pods import SETTINGS, component_pod

PROGRAM = [sys.executable, "-m", "quayscope.cli.main", "injector"]
IMAGES = ["--agent-image", SETTINGS["agent_image"], "--sidecar-image", SETTINGS["sidecar_image"]]
GIVEN = ["--collector", SETTINGS["collector"], *IMAGES, "--kubernetes", "1.30", "--namespace", "quayscope"]


class Secret:
    """A mounted Secret: files behind a link that a kubelet moves in one go."""

    def __init__(self, folder: Path, authority: trustme.CA) -> None:
        self.folder = folder
        self._authority = authority
        self.serials: list[int] = []
        self.rotate()
        for name in ("tls.crt", "tls.key"):
            (folder / name).symlink_to(f"..data/{name}")

    def rotate(self, *, broken: bool = False) -> None:
        """Put a new certificate there."""
        issued = self._authority.issue_cert("127.0.0.1")
        content = self.folder / f"..{len(self.serials)}-{time.monotonic_ns()}"
        content.mkdir()
        chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
        (content / "tls.crt").write_bytes(b"no certificate" if broken else chain)
        (content / "tls.key").write_bytes(issued.private_key_pem.bytes())
        link = self.folder / "..new"
        link.symlink_to(content.name)
        link.replace(self.folder / "..data")
        self.serials.append(len(self.serials))


class Webhook(NamedTuple):
    """The running program."""

    port: int
    secret: Secret
    trust: ssl.SSLContext
    process: subprocess.Popen[bytes]

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes, bytes]:
        """One request on a connection of its own: status, body, the certificate shown."""
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=10, context=self.trust)
        try:
            connection.connect()
            # Before the answer: one that ends the connection takes the socket along.
            assert isinstance(connection.sock, ssl.SSLSocket)
            shown = connection.sock.getpeercert(binary_form=True) or b""
            connection.request(method, path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read(), shown
        finally:
            connection.close()

    def metric(self, name: str) -> float:
        """A value of /metrics."""
        lines = self.ask("GET", "/metrics")[1].decode().splitlines()
        return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(name + " ")), 0.0)


@pytest.fixture(scope="module")
def webhook(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Webhook]:
    """The program, serving on loopback with a certificate of a CA of ours."""
    folder = tmp_path_factory.mktemp("webhook")
    authority = trustme.CA()
    (folder / "tls").mkdir()
    secret = Secret(folder / "tls", authority)
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    ready = folder / "ready"
    files = ["--certificate", str(secret.folder / "tls.crt"), "--key", str(secret.folder / "tls.key")]
    process = subprocess.Popen(
        [*PROGRAM, *GIVEN, "--listen", "127.0.0.1:0", *files, "--ready-file", str(ready)],
        stdin=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: ready.exists() or process.poll() is not None)
        port = int(json.loads(ready.read_text())["url"].rpartition(":")[2])
        yield Webhook(port, secret, trust, process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()


def review(component: str = "postgres") -> bytes:
    """A review of a pod's creation."""
    request: dict[str, Any] = {"uid": "u", "operation": "CREATE", "namespace": "quay"}
    request["object"] = component_pod(component)
    return json.dumps(
        {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}
    ).encode()


@pytest.mark.alone
def test_certificate_rotates_under_load(webhook: Webhook, full: bool) -> None:
    """At 50 reviews a second, each on a new connection, certificates change and no review fails."""
    rate, seconds = 50, 60 if full else 6
    bodies = [review(component) for component in ("postgres", "quay-app", "clair-app", "redis")]
    took: list[float] = []
    failed: list[str] = []
    shown: set[bytes] = set()
    lock = threading.Lock()
    before = webhook.metric('quayscope_injector_certificate_reloads_total{result="done"}')

    def send(body: bytes, intended: float) -> None:
        try:
            status, answer, certificate = webhook.ask("POST", "/inject", body)
            good = status == 200 and json.loads(answer)["response"]["allowed"] is True
            problem = "" if good else f"{status} {answer!r}"
        except (OSError, ValueError, http.client.HTTPException) as error:
            problem, certificate = repr(error), b""
        with lock:
            took.append(time.monotonic() - intended)
            shown.add(certificate)
            if problem:
                failed.append(problem)

    threads = []
    begin = time.monotonic()
    for i in range(rate * seconds):
        intended = begin + i / rate
        time.sleep(max(0.0, intended - time.monotonic()))  # an arrival rate, not a wait for something
        threads.append(threading.Thread(target=send, args=(bodies[i % len(bodies)], intended)))
        threads[-1].start()
        if i % (rate * 2) == rate:
            webhook.secret.rotate(broken=i % (rate * 4) == rate * 3)
    for thread in threads:
        thread.join()
    took.sort()
    half, p99 = (took[int(len(took) * share)] * 1000 for share in (0.5, 0.99))
    print(f"{len(took)} reviews, p50 {half:.1f} ms, p99 {p99:.1f} ms; {len(shown)} certificates")
    assert failed == []
    assert len(took) == rate * seconds
    assert len(shown) >= 2
    assert webhook.metric('quayscope_injector_certificate_reloads_total{result="done"}') > before
    assert webhook.metric('quayscope_injector_certificate_reloads_total{result="failed"}') > 0
    webhook.secret.rotate()


def test_silent_clients_keep_nobody_waiting(webhook: Webhook) -> None:
    """Connections that never begin TLS, or speak plain HTTP, do not delay a review."""
    silent = [socket.create_connection(("127.0.0.1", webhook.port)) for _ in range(16)]
    try:
        for one in silent[:4]:
            one.sendall(b"GET / HTTP/1.0\r\n\r\n")
        status, answer, _ = webhook.ask("POST", "/inject", review())
        assert status == 200
        assert "patch" in json.loads(answer)["response"]
    finally:
        for one in silent:
            one.close()


def test_health_and_malformed_reviews(webhook: Webhook) -> None:
    """Health is answered; a body that is no review is admitted and counted."""
    assert webhook.ask("GET", "/healthz")[:2] == (200, b"ok\n")
    name = 'quayscope_injector_reviews_total{outcome="malformed"}'
    before = webhook.metric(name)
    status, answer, _ = webhook.ask("POST", "/inject", b"{")
    assert (status, json.loads(answer)["response"]["allowed"]) == (200, True)
    assert webhook.metric(name) == before + 1
    assert webhook.ask("POST", "/other", b"{")[0] == 404


def render(pod: str, *options: str) -> subprocess.CompletedProcess[str]:
    """`quayscope injector render` of a text."""
    return subprocess.run(
        [*PROGRAM, *GIVEN, *options, "render"], input=pod, capture_output=True, text=True, env={**os.environ}
    )


def test_render_shows_the_result_offline() -> None:
    """A pod as YAML becomes the injected pod as YAML; one left alone comes back with the reason and 1."""
    done = render(yaml.safe_dump(component_pod("quay-app")))
    assert done.returncode == 0, done.stderr
    made = yaml.safe_load(done.stdout)
    assert [one["name"] for one in made["spec"]["initContainers"]][-1] == "quayscope-sidecar"
    assert "&id" not in done.stdout
    again = render(done.stdout)
    assert (again.returncode, yaml.safe_load(again.stdout)) == (1, made)
    assert "already" in again.stderr


@pytest.mark.parametrize(
    ("options", "text", "said"),
    [
        ([], "{", "no YAML"),
        ([], "kind: Service", "kind Pod"),
        (["--collector", "http://collector:4040"], "", "--insecure"),
        (["--uids", "quay-app=root"], "", "COMPONENT=UID"),
        (["--kubernetes", "new"], "", "no version"),
    ],
)
def test_bad_input_is_said(options: list[str], text: str, said: str) -> None:
    """What cannot be used ends with a message, not a traceback."""
    done = render(text, *options)
    assert done.returncode in (2, 3)
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_beyond_loopback_needs_tls() -> None:
    """Without a certificate only loopback is listened on."""
    done = subprocess.run(
        [*PROGRAM, *GIVEN, "--listen", "0.0.0.0:0"], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 2
    assert "--certificate" in done.stderr
