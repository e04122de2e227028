"""The uplink against real HTTP receivers: good, refusing, rotating tokens, and away."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from quayscope.profile import PROCESS_CPU, Attributes, Frame, Profile
from quayscope.profile.push import PUSH_PATH, decode_push
from quayscope.sidecar import uplink as module
from quayscope.sidecar.errors import BadOption, InsecureCollector
from quayscope.sidecar.uplink import Uplink

_ATTEMPTS = 10.0


class Collector:
    """Answers with what `answer` says of (path, body, token); keeps what it answered 200."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, bytes]] = []
        self.seen = 0
        self.answer: Callable[[str, bytes, str], int] = lambda path, body, token: 200
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.seen += 1
                status = outer.answer(self.path, body, self.headers.get("Authorization", ""))
                if status == 200:
                    outer.taken.append((self.path, body))
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def collector() -> Iterator[Collector]:
    running = Collector()
    yield running
    running.server.shutdown()
    running.server.server_close()


def _profile(value: int = 1) -> Profile:
    profile = Profile(PROCESS_CPU, {"service_name": "s"}, 0, 10)
    profile.add((Frame("f"),), Attributes(), (1, value))
    return profile


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _ATTEMPTS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_everything_arrives_where_it_belongs(collector: Collector) -> None:
    """Profiles, spans and metrics go to their paths, and closing sends what is left."""
    uplink = Uplink(collector.url)
    uplink.start()
    uplink.profiles([_profile(), _profile()])
    uplink.spans(b"\x0a\x00")
    uplink.metrics(b"\x0a\x00")
    assert uplink.close(5.0) == 0
    assert {path for path, _ in collector.taken} == {PUSH_PATH, "/v1/traces", "/v1/metrics"}
    ids = [
        i
        for path, body in collector.taken
        if path == PUSH_PATH
        for s in decode_push(body)
        for i, _ in s.samples
    ]
    assert len(set(ids)) == 2
    assert uplink.take_counts() == {"pushed": 4, "refused": 0, "dropped": 0, "retried": 0}
    assert uplink.take_counts()["pushed"] == 0


def test_a_push_keeps_its_identity(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is sent again after a failure carries the id it had before."""
    monkeypatch.setattr(module, "_FIRST_BACKOFF_S", 0.02)
    ids: list[str] = []

    def answer(path: str, body: bytes, token: str) -> int:
        ids.extend(push_id for series in decode_push(body) for push_id, _ in series.samples)
        return 503 if len(ids) < 3 else 200

    collector.answer = answer
    uplink = Uplink(collector.url)
    uplink.start()
    uplink.profiles([_profile()])
    _wait(lambda: bool(collector.taken))
    uplink.close(1.0)
    assert len(ids) == 3
    assert len(set(ids)) == 1
    assert uplink.take_counts() == {"pushed": 1, "refused": 0, "dropped": 0, "retried": 2}


def test_one_bad_profile_costs_itself_alone(collector: Collector) -> None:
    """A batch that is refused is sent one by one; only what is refused then is lost, and counted."""

    def answer(path: str, body: bytes, token: str) -> int:
        series = decode_push(body)
        return 400 if any(one.labels["service_name"] == "bad" for one in series) else 200

    collector.answer = answer
    uplink = Uplink(collector.url)
    bad = _profile()
    bad.labels["service_name"] = "bad"
    uplink.profiles([_profile(), bad, _profile()])
    uplink.start()
    uplink.close(5.0)
    assert len(collector.taken) == 2
    assert uplink.take_counts() == {"pushed": 2, "refused": 1, "dropped": 0, "retried": 0}


def test_unencodable_profile_costs_itself_alone(collector: Collector) -> None:
    """A profile that cannot be encoded is dropped and counted; its neighbours go."""
    uplink = Uplink(collector.url)
    broken = _profile()
    broken.samples[((Frame("f"),), Attributes())] = ("no", "numbers")  # type: ignore[assignment] # the point
    uplink.profiles([_profile(), broken, _profile()])
    uplink.start()
    uplink.close(5.0)
    counts = uplink.take_counts()
    assert (counts["pushed"], counts["dropped"]) == (2, 1)


def test_the_oldest_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the collector is away the queue stays within its bound; what goes is counted."""
    monkeypatch.setattr(module, "MAX_QUEUE_BYTES", 10_000)
    uplink = Uplink("http://127.0.0.1:1")
    uplink.start()
    for _ in range(50):
        uplink.metrics(b"x" * 1000)
    began = time.monotonic()
    left = uplink.close(0.3)
    assert time.monotonic() - began < 2.0
    counts = uplink.take_counts()
    assert left <= 10
    assert counts["dropped"] + left == 50
    assert counts["retried"] >= 1


def test_a_rotated_token_is_read_again(
    collector: Collector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a 401 the token file is read anew, and what was refused goes through."""
    monkeypatch.setattr(module, "_FIRST_BACKOFF_S", 0.02)
    collector.answer = lambda path, body, token: 200 if token == "Bearer new" else 401
    token = tmp_path / "token"
    token.write_text("old\n")
    uplink = Uplink(collector.url, token_file=token)
    uplink.start()
    uplink.metrics(b"\x0a\x00")
    _wait(lambda: collector.seen >= 1)
    token.write_text("new\n")
    _wait(lambda: bool(collector.taken))
    uplink.close(1.0)
    assert uplink.take_counts()["pushed"] == 1


@pytest.mark.parametrize(
    "url", ["http://10.0.0.1:4040", "http://collector:4040", "http://[2001:db8::1]:4040"]
)
def test_plain_http_stays_on_loopback(url: str) -> None:
    """Beyond loopback it takes TLS, or a flag that says what it is."""
    with pytest.raises(InsecureCollector) as caught:
        Uplink(url)
    assert caught.value.exit_code == 2
    assert "--insecure" in caught.value.next_step
    Uplink(url, insecure=True)
    Uplink(url.replace("http:", "https:"))


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://localhost:1", "http://[::1]:1"])
def test_loopback_is_allowed(url: str) -> None:
    """Loopback needs no flag."""
    Uplink(url)


@pytest.mark.parametrize("url", ["collector:4040", "ftp://x", "", "http://"])
def test_no_address(url: str) -> None:
    """What is no address is a usage error."""
    with pytest.raises(BadOption):
        Uplink(url)


def test_missing_token_file(tmp_path: Path) -> None:
    """A token file that is not there is a usage error, before anything is sent."""
    with pytest.raises(BadOption):
        Uplink("https://x:1", token_file=tmp_path / "none")
