"""Every variable that the helper process reads, one documented constant each."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from quayscope.relay.destination import COLLECTOR as TO_COLLECTOR
from quayscope.relay.destination import PYROSCOPE as TO_PYROSCOPE
from quayscope.relay.destination import Destination

__all__ = [
    "BASIC_AUTH_FILE",
    "CA_FILE",
    "CERT_FILE",
    "COLLECTOR",
    "INSECURE",
    "KEY_FILE",
    "LABELS",
    "LOCK_FD",
    "PYROSCOPE",
    "SOCKET",
    "TENANT",
    "TOKEN_FILE",
    "Settings",
    "next_step",
    "read",
    "variable",
]

COLLECTOR = "QUAYSCOPE_COLLECTOR"
"""Address of a collector, http(s)://HOST:PORT. It or `PYROSCOPE` must be set."""
PYROSCOPE = "QUAYSCOPE_PYROSCOPE"
"""Address of a Pyroscope instead: it gets profiles alone, no spans and no metrics."""
TOKEN_FILE = "QUAYSCOPE_TOKEN_FILE"  # noqa: S105 - the name of a variable
"""File with the bearer token; read again when it is refused."""
BASIC_AUTH_FILE = "QUAYSCOPE_BASIC_AUTH_FILE"
"""File with `user:password`; read again when it is refused."""
TENANT = "QUAYSCOPE_TENANT"
"""Sent as X-Scope-OrgID."""
CA_FILE = "QUAYSCOPE_CA_FILE"
"""CAs (PEM) to believe instead of the system's."""
CERT_FILE = "QUAYSCOPE_CERT_FILE"
"""Client certificate (PEM, with its chain) to show."""
KEY_FILE = "QUAYSCOPE_KEY_FILE"
"""Its key (PEM, not locked); may be left out where `CERT_FILE` holds it too."""
INSECURE = "QUAYSCOPE_INSECURE"
"""`on`: plain http may go beyond loopback. Default off."""
LABELS = "QUAYSCOPE_LABELS"
"""Labels on all series, `namespace=quay,pod=x`. Default in Kubernetes: the pod's own of these two."""
SOCKET = "QUAYSCOPE_SOCKET"
"""Path of the Unix socket to listen on. Default: `DEFAULT_SOCKET`."""
LOCK_FD = "QUAYSCOPE_LOCK_FD"
"""Set by whoever starts the helper: a descriptor of the locked file that it keeps open until it ends."""

DEFAULT_SOCKET = "/run/quayscope/agent.sock"
_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_LABEL = re.compile("(?!__)[A-Za-z_][A-Za-z0-9_]{0,63}")
_RESERVED = frozenset(("service_name", "role", "sampler"))
_MAX_LABELS = 16
_MAX_LABEL = 512
_ON, _OFF = frozenset(("on", "1", "true", "yes")), frozenset(("", "off", "0", "false", "no"))


class Settings(NamedTuple):
    """What the variables say. `problems` are those that make no sense, and what is done about it."""

    socket: str
    destination: Destination | None
    labels: dict[str, str]
    problems: tuple[str, ...] = ()


def read(environment: Mapping[str, str], namespace_file: Path = _NAMESPACE_FILE) -> Settings:
    """Read the variables. Without a `destination` there is nowhere to send to."""
    problems: list[str] = []
    return Settings(
        str(Path(environment.get(SOCKET) or DEFAULT_SOCKET).absolute()),
        _destination(environment, problems),
        {**_pod(environment, namespace_file), **_labels(environment.get(LABELS, ""), problems)},
        tuple(problems),
    )


def variable(field: str, kind: str = TO_COLLECTOR) -> str:
    """Return the variable that sets a field of the destination."""
    return {
        "url": PYROSCOPE if kind == TO_PYROSCOPE else COLLECTOR,
        "token_file": TOKEN_FILE,
        "basic_auth_file": BASIC_AUTH_FILE,
        "tenant": TENANT,
        "ca_file": CA_FILE,
        "cert_file": CERT_FILE,
        "key_file": KEY_FILE,
        "insecure": INSECURE,
    }[field]


def next_step(field: str, kind: str = TO_COLLECTOR) -> str:
    """Return what to do about a field of the destination that cannot be used."""
    name = variable(field, kind)
    if field == "url":
        return f"set {name} to http(s)://HOST:PORT"
    if field == "insecure":
        return f"use an https address, or set {name}=on where the network is trusted"
    return f"check {name}"


def _destination(environment: Mapping[str, str], problems: list[str]) -> Destination | None:
    collector, pyroscope = environment.get(COLLECTOR, ""), environment.get(PYROSCOPE, "")
    if not collector and not pyroscope:
        problems.append(f"neither {COLLECTOR} nor {PYROSCOPE} is set: there is nowhere to send to")
        return None
    if collector and pyroscope:
        problems.append(f"{COLLECTOR} and {PYROSCOPE} are both set: the collector is sent to")
    if environment.get(TOKEN_FILE) and environment.get(BASIC_AUTH_FILE):
        problems.append(f"{TOKEN_FILE} and {BASIC_AUTH_FILE} are both set: the token is sent")
    return Destination(
        collector or pyroscope,
        TO_COLLECTOR if collector else TO_PYROSCOPE,
        token_file=_path(environment, TOKEN_FILE),
        basic_auth_file=_path(environment, BASIC_AUTH_FILE),
        tenant=environment.get(TENANT, ""),
        ca_file=_path(environment, CA_FILE),
        cert_file=_path(environment, CERT_FILE),
        key_file=_path(environment, KEY_FILE),
        insecure=_switch(environment, INSECURE, problems),
    )


def _path(environment: Mapping[str, str], name: str) -> Path | None:
    # Absolute, since the helper leaves the folder that it was started in.
    return Path(environment[name]).absolute() if environment.get(name) else None


def _switch(environment: Mapping[str, str], name: str, problems: list[str]) -> bool:
    word = environment.get(name, "").strip().lower()
    if word not in _ON | _OFF:
        problems.append(f"{name} is neither on nor off: it counts as off")
    return word in _ON


def _pod(environment: Mapping[str, str], namespace_file: Path) -> dict[str, str]:
    if not environment.get("KUBERNETES_SERVICE_HOST"):
        return {}
    labels = {"pod": os.uname().nodename}
    try:
        namespace = namespace_file.read_text("ascii").strip()
    except (OSError, ValueError):
        # Pods without a service account's token have none.
        return labels
    return {"namespace": namespace[:_MAX_LABEL], **labels} if namespace else labels


def _labels(text: str, problems: list[str]) -> dict[str, str]:
    labels: dict[str, str] = {}
    for pair in filter(None, map(str.strip, text.split(","))):
        name, equals, value = pair.partition("=")
        if not equals or not _LABEL.fullmatch(name) or name in _RESERVED or len(value) > _MAX_LABEL:
            problems.append(f"{LABELS}: {pair[:80]!r} is no label of the form NAME=VALUE: it is left out")
        elif len(labels) >= _MAX_LABELS:
            problems.append(f"{LABELS} has more than {_MAX_LABELS} labels: {name!r} is left out")
        else:
            labels[name] = value
    return labels
