"""One capture: who was asked, what came of it, and how far it is."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from quayscope.collector.control.hub import Session
from quayscope.collector.control.merging import PartProfile
from quayscope.collector.control.request import CaptureRequest
from quayscope.profile.control import Part

__all__ = ["FINAL", "Capture", "CapturedPart", "Share"]

FINAL = ("done", "cancelled", "failed")
"""States that do not change any more. A capture is done when anything came of it, whole or not."""
_PROGRESS_S = 0.5


@dataclass
class CapturedPart:
    """One target's share. `state`: running, done, partial, failed; `error` says why it is not done."""

    part: Part
    state: str = "running"
    error: str = ""
    profiles: list[PartProfile] = field(default_factory=list)

    def shown(self, pod: str) -> dict[str, Any]:
        """Return it as JSON has it; times are Unix seconds by the collector's clock."""
        target = self.part.target
        started_ns = self.part.started_ns + self.part.offset_ns if self.part.started_ns else 0
        ended_ns = self.part.ended_ns + self.part.offset_ns if self.part.ended_ns else 0
        return {
            "pod": pod,
            "pid": target.pid,
            "kind": self.part.kind,
            "labels": dict(target.labels),
            "state": self.state,
            "error": self.error,
            "started": started_ns / 1e9,
            "ended": ended_ns / 1e9,
            "clock_offset": self.part.offset_ns / 1e9,
            "profiles": [
                {
                    "type": one.profile.type.name,
                    "sampler": one.profile.labels.get("sampler", ""),
                    "samples": len(one.profile.samples),
                    "totals": list(one.profile.totals()),
                    "losses": dict(vars(one.profile.losses)),
                }
                for one in self.profiles
            ],
        }


@dataclass
class Share:
    """What one sidecar was asked for. `error`: why nothing is to be expected of it."""

    session: Session
    answered: bool = False
    error: str = ""
    gone: bool = False
    parts: dict[int, CapturedPart] = field(default_factory=dict)

    @property
    def over(self) -> bool:
        """Whether nothing more is to come."""
        return bool(self.error) or (
            self.answered and all(one.state != "running" for one in self.parts.values())
        )


class Capture:
    """A capture under way, or just over. `lock` guards everything that changes; waiters are woken by it."""

    def __init__(self, name: str, request: CaptureRequest, by: str, start_ns: int, why: str = "") -> None:
        self.name = name
        self.request = request
        self.by = by
        self.why = why
        self.before: dict[str, list[int]] = {}
        self.start_ns = start_ns
        self.end_ns = start_ns + request.seconds * 10**9
        self.state = "running"
        self.error = ""
        self.cancelled_by = ""
        self.shares: dict[str, Share] = {}
        self.types: dict[str, list[int]] = {}
        self.samples = 0
        self.lock = threading.Condition()

    @property
    def over(self) -> bool:
        """Whether its result is there, or never will be."""
        return self.state in FINAL

    def wait(self, timeout_s: float) -> bool:
        """Wait until it is over; whether it is."""
        with self.lock:
            return self.lock.wait_for(lambda: self.over, timeout_s)

    def progress(self) -> Iterator[dict[str, Any]]:
        """Yield what it looks like, about twice a second, until it is over."""
        while True:
            with self.lock:
                self.lock.wait_for(lambda: self.over, _PROGRESS_S)
                shown = self.shown()
            yield shown
            if shown["state"] in FINAL:
                return

    def shown(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        with self.lock:
            parts = [
                one.shown(share.session.name)
                for share in self.shares.values()
                for one in share.parts.values()
            ]
            started = [part["started"] for part in parts if part["started"]]
            failed = [
                {"pod": share.session.name, "error": share.error}
                for share in self.shares.values()
                if share.error
            ]
            now = time.time_ns()
            share_of_time = (now - self.start_ns) / max(1, self.end_ns - self.start_ns)
            return {
                "id": self.name,
                "state": self.state,
                "error": self.error,
                "by": self.by,
                "why": self.why,
                "before": dict(self.before),
                "cancelled_by": self.cancelled_by,
                **self.request.shown(),
                "start": self.start_ns / 1e9,
                "end": self.end_ns / 1e9,
                "progress": 1.0 if self.over else round(min(max(share_of_time, 0.0), 1.0), 3),
                "start_skew": round(max(started) - min(started), 6) if started else 0.0,
                "types": dict(self.types),
                "pods": sorted({share.session.name for share in self.shares.values()}),
                "failed": failed
                + [
                    {"pod": part["pod"], "pid": part["pid"], "error": part["error"]}
                    for part in parts
                    if part["error"]
                ],
                "parts": parts,
            }
