"""Control as a part of the collector: its gRPC service and its HTTP blueprints over one hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flask import Blueprint

from quayscope.collector.access import WRITE, Access
from quayscope.collector.control.before import before
from quayscope.collector.control.captures import Captures
from quayscope.collector.control.http import captures_blueprint
from quayscope.collector.control.hub import Hub
from quayscope.collector.control.kept import KeptCaptures
from quayscope.collector.control.pprof import pprof_blueprint
from quayscope.collector.control.service import control_handler
from quayscope.collector.control.triggers import Rule, Triggers
from quayscope.collector.counters import Counters
from quayscope.collector.store import Store

__all__ = ["ControlDoor"]


class ControlDoor:
    """Keeps results under `directory`. A sidecar attaches with the scope that it pushes with."""

    def __init__(
        self,
        directory: Path,
        store: Store,
        counters: Counters,
        access: Access,
        version: str,
        pyroscope: str = "",
        rules: Sequence[Rule] = (),
    ) -> None:
        self._hub = Hub(version, counters)
        kept = KeptCaptures(directory)
        self._captures = Captures(self._hub, kept, counters, lambda span: before(store, span))
        self._triggers = Triggers(rules, store, self._captures, counters)
        self.handler = control_handler(self._hub, counters, lambda shown: access.require(shown, WRITE))
        self.blueprints: list[Blueprint] = [
            captures_blueprint(self._captures, kept, self._hub, pyroscope),
            pprof_blueprint(self._captures, kept, self._hub),
        ]

    def start(self) -> None:
        """Begin to finish captures."""
        self._captures.start_thread()
        self._triggers.start()

    def close(self) -> None:
        """End captures and streams."""
        self._triggers.close()
        self._captures.close()
        self._hub.close()
