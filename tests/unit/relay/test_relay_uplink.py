"""The uplink against real HTTP receivers: good, refusing, rotating tokens, and away."""

from __future__ import annotations

import base64
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from quayscope.profile import PROCESS_CPU, Attributes, Frame, Losses, Profile
from quayscope.profile.pprof import decode
from quayscope.profile.push import PUSH_PATH, decode_push
from quayscope.relay import outbox
from quayscope.relay import uplink as module
from quayscope.relay.backoff import Backoff
from quayscope.relay.destination import PYROSCOPE, Destination
from quayscope.relay.uplink import Uplink
from receiving_server import Received, ReceivingServer

_ATTEMPTS = 10.0


@pytest.fixture
def collector() -> Iterator[ReceivingServer]:
    running = ReceivingServer()
    yield running
    running.stop()


def _profile(value: int = 1) -> Profile:
    profile = Profile(PROCESS_CPU, {"service_name": "s"}, 0, 10)
    profile.add((Frame("f"),), Attributes(), (1, value))
    return profile


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _ATTEMPTS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_everything_arrives_where_it_belongs(collector: ReceivingServer) -> None:
    """Profiles, spans and metrics go to their paths, and closing sends what is left."""
    uplink = Uplink(Destination(collector.url))
    uplink.start()
    uplink.profiles([_profile(), _profile()])
    uplink.spans(b"\x0a\x00")
    uplink.metrics(b"\x0a\x00")
    assert uplink.close(5.0) == 0
    assert {path for path, *_ in collector.taken} == {PUSH_PATH, "/v1/traces", "/v1/metrics"}
    ids = [
        i
        for path, _, body, _ in collector.taken
        if path == PUSH_PATH
        for s in decode_push(body)
        for i, _ in s.samples
    ]
    assert len(set(ids)) == 2
    assert uplink.take_counts() == {"pushed": 4, "refused": 0, "dropped": 0, "retried": 0, "unsent": 0}
    assert uplink.take_counts()["pushed"] == 0


def test_a_push_keeps_its_identity(collector: ReceivingServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is sent again after a failure carries the id it had before."""
    monkeypatch.setattr(module, "_FIRST_BACKOFF_S", 0.02)
    ids: list[str] = []

    def answer(received: Received) -> int:
        ids.extend(push_id for series in decode_push(received.body) for push_id, _ in series.samples)
        return 503 if len(ids) < 3 else 200

    collector.answer = answer
    uplink = Uplink(Destination(collector.url))
    uplink.start()
    uplink.profiles([_profile()])
    _wait(lambda: bool(collector.taken))
    uplink.close(1.0)
    assert len(ids) == 3
    assert len(set(ids)) == 1
    assert uplink.take_counts() == {"pushed": 1, "refused": 0, "dropped": 0, "retried": 2, "unsent": 0}


def test_one_bad_profile_costs_itself_alone(collector: ReceivingServer) -> None:
    """A batch that is refused is sent one by one; only what is refused then is lost, and counted."""

    def answer(received: Received) -> int:
        series = decode_push(received.body)
        return 400 if any(one.labels["service_name"] == "bad" for one in series) else 200

    collector.answer = answer
    uplink = Uplink(Destination(collector.url))
    bad = _profile()
    bad.labels["service_name"] = "bad"
    uplink.profiles([_profile(), bad, _profile()])
    uplink.start()
    uplink.close(5.0)
    assert len(collector.taken) == 2
    assert uplink.take_counts() == {"pushed": 2, "refused": 1, "dropped": 0, "retried": 0, "unsent": 0}


def test_unencodable_profile_costs_itself_alone(collector: ReceivingServer) -> None:
    """A profile that cannot be encoded is dropped and counted; its neighbours go."""
    uplink = Uplink(Destination(collector.url))
    broken = _profile()
    broken.samples[((Frame("f"),), Attributes())] = ("no", "numbers")  # type: ignore[assignment] # the point
    uplink.profiles([_profile(), broken, _profile()])
    uplink.start()
    uplink.close(5.0)
    counts = uplink.take_counts()
    assert (counts["pushed"], counts["dropped"]) == (2, 1)


def test_the_oldest_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the collector is away the queue stays within its bound; what goes is counted."""
    monkeypatch.setattr(outbox, "MAX_QUEUE_BYTES", 10_000)
    uplink = Uplink(Destination("http://127.0.0.1:1"))
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
    collector: ReceivingServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a 401 the token file is read anew, and what was refused goes through."""
    monkeypatch.setattr(module, "_FIRST_BACKOFF_S", 0.02)
    collector.answer = lambda got: 200 if got.headers["authorization"] == "Bearer new" else 401
    token = tmp_path / "token"
    token.write_text("old\n")
    uplink = Uplink(Destination(collector.url, token_file=token))
    uplink.start()
    uplink.metrics(b"\x0a\x00")
    _wait(lambda: bool(collector.seen))
    token.write_text("new\n")
    _wait(lambda: bool(collector.taken))
    uplink.close(1.0)
    assert uplink.take_counts()["pushed"] == 1


def test_a_rotated_password_is_read_again(
    collector: ReceivingServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same holds for a user and a password, and for a file that is away for a moment."""
    monkeypatch.setattr(module, "_FIRST_BACKOFF_S", 0.02)
    good = "Basic " + base64.b64encode(b"quay:new word").decode()
    collector.answer = lambda got: 200 if got.headers["authorization"] == good else 401
    secret = tmp_path / "secret"
    secret.write_text("quay:old word\n")
    uplink = Uplink(Destination(collector.url, basic_auth_file=secret))
    secret.unlink()
    uplink.start()
    uplink.metrics(b"\x0a\x00")
    _wait(lambda: len(collector.seen) >= 2)
    secret.write_text("quay:new word\n")
    _wait(lambda: bool(collector.taken))
    uplink.close(1.0)
    assert uplink.take_counts()["pushed"] == 1


def test_without_a_file_a_401_is_final(collector: ReceivingServer) -> None:
    """What is refused for want of a token is not sent again and again."""
    collector.answer = lambda got: 401
    uplink = Uplink(Destination(collector.url))
    uplink.start()
    uplink.metrics(b"\x0a\x00")
    uplink.close(2.0)
    counts = uplink.take_counts()
    assert (counts["refused"], counts["retried"]) == (1, 0)


def test_to_a_pyroscope_only_profiles_go(collector: ReceivingServer, tmp_path: Path) -> None:
    """They are mapped and cut into pieces; spans and metrics are counted as not sent."""
    token = tmp_path / "token"
    token.write_text("t0ken\n")
    uplink = Uplink(Destination(collector.url, PYROSCOPE, token_file=token, tenant="team"))
    profile = Profile(PROCESS_CPU, {"service_name": "s"}, 0, 10, losses=Losses(lost=3))
    for number in range(17_000):
        profile.add((Frame(f"f{number}"),), Attributes(number, "GET /", "r", "p", number), (1, 2))
    uplink.spans(b"\x0a\x00")
    uplink.metrics(b"\x0a\x00")
    uplink.profiles([profile, _profile()])
    uplink.start()
    assert uplink.close(20.0) == 0
    assert {got.path for got in collector.taken} == {PUSH_PATH}
    assert collector.taken[0].headers["x-scope-orgid"] == "team"
    assert collector.taken[0].headers["authorization"] == "Bearer t0ken"
    series = [one for got in collector.taken for one in decode_push(got.body)]
    parts = [decode(data) for one in series for _, data in one.samples]
    assert sorted(len(part.samples) for part in parts) == [1, 8_500, 8_500]
    assert sum(part.totals()[1] for part in parts) == 34_001
    assert sum(part.losses.lost for part in parts) == 3
    roots = {stack[0] for part in parts for stack, _ in part.samples}
    assert roots == {Frame("GET /", "", 0, "root"), Frame("f")}
    assert {attributes.run for part in parts for _, attributes in part.samples} == {""}
    assert uplink.take_counts() == {"pushed": 2, "refused": 0, "dropped": 0, "retried": 0, "unsent": 2}


def test_nothing_secret_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A receiver that repeats what it was sent does not bring the token or the password into the log."""
    caplog.set_level(logging.DEBUG)
    secret, token = tmp_path / "secret", tmp_path / "token"
    secret.write_text("quay:hunter2")
    token.write_text("t0ken")
    packed = base64.b64encode(b"quay:hunter2").decode()
    echo = ReceivingServer(content=f"no: Basic {packed}, hunter2, Bearer t0ken".encode())
    echo.answer = lambda got: 400
    try:
        for destination in (
            Destination(echo.url, token_file=token),
            Destination(echo.url, basic_auth_file=secret),
        ):
            uplink = Uplink(destination)
            uplink.start()
            uplink.metrics(b"\x0a\x00")
            uplink.close(2.0)
    finally:
        echo.stop()
    logged = [str(vars(record)) for record in caplog.records]
    with_token, with_password = (text for text in logged if "refused" in text)
    assert "t0ken" not in with_token
    assert "hunter2" not in with_password
    assert packed not in with_password


def test_back_off_doubles_with_jitter() -> None:
    """Pauses double up to the longest, each cut by up to a half; a success begins anew."""
    backoffs = [Backoff(0.5, 30.0) for _ in range(50)]
    for bound in (0.5, 1, 2, 4, 8, 16, 30, 30):
        pauses = [backoff.pause() for backoff in backoffs]
        assert all(bound / 2 <= pause <= bound for pause in pauses)
        assert len(set(pauses)) > 25
    backoffs[0].reset()
    assert backoffs[0].pause() <= 0.5
