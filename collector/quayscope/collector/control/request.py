"""A capture as it is asked for: JSON or URL parameters to a `CaptureRequest`; wrong ones get a clear 400."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from quayscope.collector.control.hub import labels_match
from quayscope.collector.errors import BadRequest
from quayscope.profile.control import KINDS, SetRate, Target

__all__ = ["ALL", "CaptureRequest", "read_rate", "read_request"]

ALL = ("python", "postgres", "go", "native")
"""What `all` stands for, in order: each process is captured by the first that suits it."""
LONGEST_S, HIGHEST_HZ = 600, 999
_DEFAULT_S, _DEFAULT_HZ = 10, 99
_LONGEST_RATE_S = 86_400
_ALIASES = {"service": "service_name"}
_COMPONENTS = {"postgres": "quay-database"}
"""Components of the operator whose service_name is another one."""
_MAX_LABELS = 20
_MAX_PIDS = 64
_MAX_TEXT = 500
_SELECTOR = "{service, component, pod, namespace, role, pid, endpoint, or any other label}"


class CaptureRequest(NamedTuple):
    """What to capture. `labels` and `pids` select targets, `endpoint` samples; `seconds` are whole."""

    labels: Mapping[str, str]
    pids: tuple[int, ...] = ()
    endpoint: str = ""
    seconds: int = _DEFAULT_S
    hz: int = _DEFAULT_HZ
    kinds: tuple[str, ...] = ALL

    def selects(self, target: Target) -> bool:
        """Whether a target is meant."""
        return labels_match(target, self.labels, self.pids)

    def shown(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {
            "selector": {
                **self.labels,
                **({"pid": list(self.pids)} if self.pids else {}),
                **({"endpoint": self.endpoint} if self.endpoint else {}),
            },
            "seconds": self.seconds,
            "rate": self.hz,
            "kinds": list(self.kinds),
        }


def read_request(document: Any) -> CaptureRequest:
    """Read `{"selector": {...}, "seconds", "rate", "kinds"}`; raises `BadRequest`."""
    if not isinstance(document, dict):
        raise BadRequest("the capture is not a JSON object", next_step='send {"selector": {...}}')
    _check_names(document, ("selector", "seconds", "rate", "kinds"))
    selector = document.get("selector", {})
    if not isinstance(selector, dict) or len(selector) > _MAX_LABELS:
        raise BadRequest("the selector is not a small object", next_step=f"use {_SELECTOR}")
    labels: dict[str, str] = {}
    pids: tuple[int, ...] = ()
    endpoint = ""
    for name, value in selector.items():
        if name == "pid":
            pids = _pids(value)
        elif not isinstance(value, str) or len(value) > _MAX_TEXT:
            raise BadRequest(f"selector {name[:40]!r} is not a short string", next_step=f"use {_SELECTOR}")
        elif name == "endpoint":
            endpoint = value
        elif name == "component":
            labels["service_name"] = _COMPONENTS.get(value, value)
        else:
            labels[_ALIASES.get(str(name), str(name))] = value
    return CaptureRequest(
        labels,
        pids,
        endpoint,
        _number(document, "seconds", _DEFAULT_S, LONGEST_S),
        _number(document, "rate", _DEFAULT_HZ, HIGHEST_HZ),
        _kinds(document.get("kinds", ["all"])),
    )


def read_rate(document: Any) -> tuple[CaptureRequest, SetRate]:
    """Read `{"selector", "on", "rate", "seconds"}`: whose workers, how they sample; raises `BadRequest`."""
    if not isinstance(document, dict):
        raise BadRequest("the body is not a JSON object", next_step='send {"selector": {...}}')
    _check_names(document, ("selector", "on", "rate", "seconds"))
    on = document.get("on", True)
    if not isinstance(on, bool):
        raise BadRequest("on is neither true nor false")
    rate = _number(document, "rate", 1, HIGHEST_HZ) if "rate" in document else 0
    seconds = _number(document, "seconds", 1, _LONGEST_RATE_S) if "seconds" in document else 0
    selected = read_request({"selector": document.get("selector", {})})
    return selected, SetRate(rate, not on, seconds)


def _check_names(document: Mapping[str, Any], known: Sequence[str]) -> None:
    unknown = sorted(str(name) for name in document.keys() - set(known))
    if unknown:
        raise BadRequest(f"{unknown[0][:40]!r} is not known", next_step=f"use {', '.join(known)}")


def _number(document: Mapping[str, Any], name: str, default: int, most: int) -> int:
    value = document.get(name, default)
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not 1 <= value <= most or value != int(value):
        raise BadRequest(f"{name} is not a whole number from 1 to {most}")
    return int(value)


def _pids(value: Any) -> tuple[int, ...]:
    listed = value if isinstance(value, list) else [value]
    if (
        not listed
        or len(listed) > _MAX_PIDS
        or not all(isinstance(pid, int) and not isinstance(pid, bool) and 0 < pid < 1 << 31 for pid in listed)
    ):
        raise BadRequest("pid is not a number, or a short list of them")
    return tuple(listed)


def _kinds(value: Any) -> tuple[str, ...]:
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list) or not listed or not all(isinstance(kind, str) for kind in listed):
        raise BadRequest("kinds is not a list of words", next_step=f"use {', '.join((*KINDS, 'all'))}")
    for kind in listed:
        if kind not in (*KINDS, "all"):
            raise BadRequest(
                f"kind {kind[:40]!r} is not known", next_step=f"use {', '.join((*KINDS, 'all'))}"
            )
    return tuple(dict.fromkeys(one for kind in listed for one in (ALL if kind == "all" else (kind,))))
