"""What each command of the collector does here."""

from __future__ import annotations

import logging

from quayscope.profile.control import Answer, CancelCapture, Command, SetRate, StartCapture
from quayscope.relay import Relay, WorkerSettings
from quayscope.sidecar.control.agents import Rates
from quayscope.sidecar.control.capturer import Clock
from quayscope.sidecar.control.captures import HIGHEST_HZ, Captures

__all__ = ["Obedience"]

log = logging.getLogger(__name__)


class Obedience:
    """Does what is asked, and answers; refuses numbers out of range."""

    def __init__(self, captures: Captures, relay: Relay, rates: Rates, clock: Clock) -> None:
        self._captures = captures
        self._relay = relay
        self._rates = rates
        self._clock = clock

    def obey(self, command: Command) -> Answer:
        """Do it, and return the answer."""
        log.info("command", extra={"command": command.id, "what": type(command.body).__name__})
        body = command.body
        if isinstance(body, StartCapture):
            return self._captures.start(command.id, body)
        if isinstance(body, CancelCapture):
            return self._captures.cancel(body.capture)._replace(command=command.id)
        if isinstance(body, SetRate):
            return self._set_rate(command.id, body)
        return Answer(command.id, "unknown", "this command is not known here")

    def _set_rate(self, name: str, asked: SetRate) -> Answer:
        if asked.hz > HIGHEST_HZ:
            return Answer(name, "refused", f"{asked.hz} Hz is more than {HIGHEST_HZ}")
        until_ns = self._clock() + asked.seconds * 10**9 if asked.seconds else 0
        settings = WorkerSettings(not asked.off, asked.hz or None, None, until_ns)
        self._rates.own = settings
        self._relay.tell(settings)
        return Answer(name, "accepted")
