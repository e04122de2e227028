"""The sidecars that are attached: who they are, what they can capture, and how far their clocks are off."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

from quayscope.collector.counters import Counters
from quayscope.collector.errors import Overloaded
from quayscope.profile import MalformedProfile
from quayscope.profile.control import (
    Answer,
    FromCollector,
    Heartbeat,
    HeartbeatAnswer,
    Part,
    Register,
    Target,
    Targets,
    Unknown,
    Welcome,
    decode_from_sidecar,
    encode_from_collector,
)

__all__ = ["Hub", "Listener", "Session"]

log = logging.getLogger(__name__)

MAX_SIDECARS = 256
"""Streams held at once; a thread or two each."""
HEARTBEAT_S = 2.0
SILENT_S = 20.0
"""A sidecar that has said nothing for so long counts as gone."""
_MOST_WAITING = 256


class Listener(Protocol):
    """Hears what sidecars say about captures. Called from the streams' threads."""

    def answered(self, session: Session, answer: Answer) -> None:
        """Take the answer to a command."""

    def delivered(self, session: Session, part: Part) -> None:
        """Take a finished part."""

    def gone(self, session: Session) -> None:
        """Hear that a sidecar's stream is over."""


class Session:
    """One attached sidecar. `offset_ns` is our clock less its own, `round_trip_ns` 0: not known yet."""

    def __init__(self, register: Register) -> None:
        self.register = register
        self.targets: tuple[Target, ...] = register.targets
        self.offset_ns = 0
        self.round_trip_ns = 0
        self.since = time.time()
        self.heard_at = time.monotonic()
        self._outgoing: queue.Queue[bytes | None] = queue.Queue(_MOST_WAITING)

    @property
    def pod(self) -> str:
        """The pod's name."""
        return self.register.labels.get("pod", "")

    @property
    def name(self) -> str:
        """What it is called towards people: namespace/pod."""
        namespace = self.register.labels.get("namespace", "")
        return f"{namespace}/{self.pod}" if namespace else self.pod

    def send(self, message: FromCollector) -> None:
        """Send soon; raises `Overloaded` when too much waits."""
        try:
            self._outgoing.put_nowait(encode_from_collector(message))
        except queue.Full:
            raise Overloaded(f"sidecar {self.name} does not read what it is sent") from None

    def end(self) -> None:
        """End its stream."""
        while True:
            try:
                self._outgoing.put_nowait(None)
            except queue.Full:
                self._outgoing.get_nowait()
            else:
                return

    def outgoing(self) -> Iterator[bytes]:
        """Yield what is to be sent, until the stream's end."""
        while (message := self._outgoing.get()) is not None:
            yield message


class Hub:
    """Holds the sessions; thread-safe. `clock` gives Unix nanoseconds."""

    def __init__(self, version: str, counters: Counters, clock: Callable[[], int] = time.time_ns) -> None:
        self._version = version
        self._counters = counters
        self._clock = clock
        self._lock = threading.Lock()
        self._sessions: dict[str, Session] = {}
        self.listener: Listener | None = None

    def sessions(self) -> list[Session]:
        """Return those that are attached, by name."""
        with self._lock:
            return sorted(self._sessions.values(), key=lambda one: (one.name, one.register.instance))

    def now_ns(self) -> int:
        """Return the clock that captures begin by."""
        return self._clock()

    def attach(self, first: bytes) -> Session:
        """Take a stream's first message; raises `MalformedProfile` for anything but a registration.

        Raises `Overloaded` when too many are attached. A sidecar that comes back takes its old place.
        """
        register = decode_from_sidecar(first)
        if not isinstance(register, Register) or not register.instance:
            raise MalformedProfile("the first message is no registration")
        session = Session(register)
        with self._lock:
            before = self._sessions.pop(register.instance, None)
            if len(self._sessions) >= MAX_SIDECARS:
                raise Overloaded(f"{MAX_SIDECARS} sidecars are attached already")
            self._sessions[register.instance] = session
        if before is not None:
            before.end()
        session.send(Welcome(self._version, round(HEARTBEAT_S * 1000)))
        self._counters.add("sidecars_attached")
        log.info(
            "sidecar attached",
            extra={"sidecar": session.name, "version": register.version, "targets": len(session.targets)},
        )
        return session

    def detach(self, session: Session) -> None:
        """Forget a session whose stream is over."""
        with self._lock:
            held = self._sessions.get(session.register.instance) is session
            if held:
                del self._sessions[session.register.instance]
        session.end()
        if held:
            log.info("sidecar detached", extra={"sidecar": session.name})
            if self.listener is not None:
                self.listener.gone(session)

    def heard(self, session: Session, data: bytes) -> None:
        """Take a message; one that cannot be read is answered and counted, and costs nothing else."""
        received_ns = self._clock()
        session.heard_at = time.monotonic()
        try:
            said = decode_from_sidecar(data)
        except MalformedProfile as error:
            self._counters.add("control_malformed")
            session.send(Answer("", "refused", str(error)))
            return
        if isinstance(said, Heartbeat):
            session.offset_ns, session.round_trip_ns = said.offset_ns, said.round_trip_ns
            session.send(HeartbeatAnswer(said.sent_ns, received_ns, self._clock()))
        elif isinstance(said, Targets):
            session.targets = said.targets
        elif isinstance(said, Register):
            session.register, session.targets = said, said.targets
        elif isinstance(said, Unknown):
            self._counters.add("control_unknown")
            session.send(Answer("", "unknown", f"message {said.number} is not known here"))
        elif self.listener is not None:
            if isinstance(said, Part):
                self.listener.delivered(session, said)
            elif said.command:
                self.listener.answered(session, said)
            else:
                log.warning("a sidecar did not understand", extra={"text": said.text[:200]})

    def end_silent(self) -> None:
        """End the streams of those who have not been heard of for too long."""
        for session in self.sessions():
            if time.monotonic() - session.heard_at > SILENT_S:
                self.detach(session)

    def close(self) -> None:
        """End all streams."""
        for session in self.sessions():
            self.detach(session)


def labels_match(target: Target, labels: Mapping[str, str], pids: tuple[int, ...]) -> bool:
    """Whether a target has all of these labels, and one of these pids where there are any."""
    return (not pids or target.pid in pids) and all(
        target.labels.get(name, "") == value for name, value in labels.items()
    )
