"""The one stream to the collector: opened by us, kept alive, and opened again when it was cut."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import grpc

from quayscope.profile import MalformedProfile
from quayscope.profile.control import (
    ATTACH_METHOD,
    SERVICE,
    Answer,
    Command,
    FromSidecar,
    Heartbeat,
    HeartbeatAnswer,
    Register,
    Target,
    Targets,
    Unknown,
    Welcome,
    decode_from_collector,
    encode_from_sidecar,
)
from quayscope.relay import BadDestination
from quayscope.relay.backoff import Backoff
from quayscope.relay.destination import Destination
from quayscope.sidecar.control.offset import ClockOffset
from quayscope.sidecar.errors import BadOption

__all__ = ["ControlStream", "Peer"]

log = logging.getLogger(__name__)

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
HEARTBEAT_S = 2.0
"""Until the collector says how often it wants them."""
_HURRIED = 5
_HURRIED_S = 0.1
"""The first heartbeats come quickly: a capture may be asked for at once, and needs the clock's offset."""
MOST_WAITING = 256
"""Messages that wait to be sent; more are dropped, and counted."""
MAX_MESSAGE = 64 << 20
_SILENCE = 5
"""Heartbeats without an answer after which the connection counts as cut."""
_MAX_SECRET = 65_536
_STEPS = {
    "insecure": "use an https address, or --insecure where the network is trusted",
    "token_file": "check --token-file",
    "ca_file": "check --ca-file, which goes with https alone",
}


class Peer(NamedTuple):
    """The collector's gRPC address, `http(s)://HOST:PORT`, and what is shown there; read at each attempt.

    `insecure` allows plain text beyond loopback. `check` raises `BadOption`.
    """

    url: str
    token_file: Path | None = None
    ca_file: Path | None = None
    insecure: bool = False

    def check(self) -> None:
        """Refuse an address that is none, or one that would be spoken to in the open."""
        try:
            Destination(
                self.url, token_file=self.token_file, ca_file=self.ca_file, insecure=self.insecure
            ).client().close()
        except BadDestination as error:
            step = _STEPS.get(error.field, "use --control http://HOST:4317")
            raise BadOption(f"--control: {error}", next_step=step) from error
        if urlsplit(self.url).port is None:
            raise BadOption("--control has no port", next_step="use --control http://HOST:4317")

    def channel(self) -> grpc.Channel:
        """Return a channel; raises OSError for a file that cannot be read."""
        parts = urlsplit(self.url)
        options = [("grpc.max_receive_message_length", MAX_MESSAGE), ("grpc.enable_http_proxy", 0)]
        if parts.scheme == "https":
            roots = self.ca_file.read_bytes() if self.ca_file is not None else None
            return grpc.secure_channel(parts.netloc, grpc.ssl_channel_credentials(roots), options)
        return grpc.insecure_channel(parts.netloc, options)

    def metadata(self) -> list[tuple[str, str]]:
        """Return what goes with the call; raises OSError for a token that cannot be read."""
        if self.token_file is None:
            return []
        with self.token_file.open("rb") as file:
            token = file.read(_MAX_SECRET).decode("utf-8", "replace").strip()
        return [("authorization", f"Bearer {token}")] if token else []


class ControlStream:
    """Connects on a thread of its own and hands commands to `obey`, whose answer is sent.

    `describe` gives what to register; `targets` is asked with each heartbeat. `clock` gives Unix nanoseconds.
    `counts`: attached, cut, dropped, malformed, unknown, faults.
    """

    def __init__(
        self,
        peer: Peer,
        describe: Callable[[], Register],
        targets: Callable[[], tuple[Target, ...]],
        obey: Callable[[Command], Answer],
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._peer = peer
        self._describe = describe
        self._targets = targets
        self._obey = obey
        self._clock = clock
        self._outgoing: queue.Queue[FromSidecar | None] = queue.Queue(MOST_WAITING)
        self._stop = threading.Event()
        self._call: grpc.RpcContext | None = None
        self._heartbeat_s = HEARTBEAT_S
        self._unanswered = 0
        self.offset = ClockOffset()
        self.counts = dict.fromkeys(("attached", "cut", "dropped", "malformed", "unknown", "faults"), 0)
        self._attached = threading.Event()
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)

    def start(self) -> None:
        """Begin to connect."""
        self._thread.start()

    def wait_attached(self, timeout_s: float) -> bool:
        """Wait until the collector has answered; whether it did."""
        return self._attached.wait(timeout_s)

    @property
    def attached(self) -> bool:
        """Whether the collector has answered on the stream that is open now."""
        return self._attached.is_set()

    def send(self, message: FromSidecar) -> None:
        """Send once there is a stream; the newest message is dropped, and counted, when too many wait."""
        try:
            self._outgoing.put_nowait(message)
        except queue.Full:
            self.counts["dropped"] += 1

    def close(self, timeout_s: float = 2.0) -> None:
        """Send what waits for at most half of the time, then end the stream."""
        deadline = time.monotonic() + timeout_s / 2
        while self.attached and not self._outgoing.empty() and time.monotonic() < deadline:
            time.sleep(0.02)
        self._stop.set()
        self.send_none()
        call = self._call
        if call is not None:
            call.cancel()
        if self._thread.ident is not None:
            self._thread.join(timeout_s / 2)

    def send_none(self) -> None:
        """Wake whoever waits for a message to send."""
        try:
            self._outgoing.put_nowait(None)
        except queue.Full:
            return

    def _run(self) -> None:
        backoff = Backoff(FIRST_PAUSE_S, LONGEST_PAUSE_S)
        while not self._stop.is_set():
            # The one border of this thread: whatever goes wrong on a stream, the next one is opened.
            try:
                self._attach(backoff)
                said = "ended by the collector"
            except grpc.RpcError as error:
                said = f"{_code(error)}: {_details(error)}"
            except OSError as error:
                said = str(error)
            except Exception as error:
                self.counts["faults"] += 1
                log.exception("control fault")
                said = type(error).__name__
            if self._attached.is_set():
                self._attached.clear()
                self.counts["cut"] += 1
            pause = backoff.pause()
            if not self._stop.is_set():
                log.warning("control stream is cut", extra={"reason": said[:200], "pause_s": round(pause, 2)})
            self._stop.wait(pause)

    def _attach(self, backoff: Backoff) -> None:
        self._unanswered = 0
        ended = threading.Event()
        with self._peer.channel() as channel:
            attach = channel.stream_stream(f"/{SERVICE}/{ATTACH_METHOD}")
            call = attach(self._messages(ended), metadata=self._peer.metadata())
            self._call = call
            try:
                for data in call:
                    self._take(data, backoff)
                    if self._stop.is_set():
                        return
            finally:
                ended.set()
                self.send_none()
                self._call = None
                call.cancel()

    def _messages(self, ended: threading.Event) -> Iterator[bytes]:
        """Yield what goes out, from grpc's thread: the registration, then what waits, heartbeats between."""
        targets = self._targets()
        yield encode_from_sidecar(self._describe()._replace(targets=targets))
        sent = 0
        beat_at = time.monotonic()
        while not (ended.is_set() or self._stop.is_set()):
            try:
                message = self._outgoing.get(timeout=max(0.0, beat_at - time.monotonic()))
            except queue.Empty:
                if self._unanswered >= _SILENCE and self._call is not None:
                    self._call.cancel()
                    return
                sent += 1
                beat_at = time.monotonic() + (_HURRIED_S if sent < _HURRIED else self._heartbeat_s)
                now = self._targets()
                if now != targets:
                    targets = now
                    yield encode_from_sidecar(Targets(targets))
                best = self.offset.best
                self._unanswered += 1
                yield encode_from_sidecar(Heartbeat(self._clock(), best.offset_ns, best.round_trip_ns))
                continue
            if ended.is_set():
                # This stream is over: the message is the next one's.
                if message is not None:
                    self.send(message)
                return
            if message is not None:
                yield encode_from_sidecar(message)

    def _take(self, data: bytes, backoff: Backoff) -> None:
        arrived = self._clock()
        try:
            said = decode_from_collector(data)
        except MalformedProfile as error:
            self.counts["malformed"] += 1
            self.send(Answer("", "refused", str(error)))
            return
        if isinstance(said, HeartbeatAnswer):
            self._unanswered = 0
            self.offset.add(said, arrived)
        elif isinstance(said, Welcome):
            backoff.reset()
            self.counts["attached"] += 1
            self._heartbeat_s = min(max(said.heartbeat_ms / 1000, 0.1), 60.0)
            self._attached.set()
            log.info("attached to the collector", extra={"version": said.version})
        elif isinstance(said, Command):
            self.send(self._answer(said))
        elif isinstance(said, Unknown):
            self.counts["unknown"] += 1
            self.send(Answer("", "unknown", f"message {said.number} is not known here"))
        elif said.status != "accepted":
            log.warning("the collector did not understand", extra={"text": said.text[:200]})

    def _answer(self, command: Command) -> Answer:
        if isinstance(command.body, Unknown):
            self.counts["unknown"] += 1
            return Answer(command.id, "unknown", f"command {command.body.number} is not known here")
        # A border: a command that fails must not cost the stream, nor the next command.
        try:
            return self._obey(command)
        except Exception as error:
            self.counts["faults"] += 1
            log.exception("command fault", extra={"command": command.id})
            return Answer(command.id, "refused", f"internal error: {type(error).__name__}")


def _code(error: grpc.RpcError) -> str:
    code = getattr(error, "code", None)
    return str(code().name) if callable(code) and code() is not None else "unknown"


def _details(error: grpc.RpcError) -> str:
    details = getattr(error, "details", None)
    return str(details()) if callable(details) else ""
