"""What goes out of the pod and comes to its gateway, as flags: destinations, spool, where to listen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import click

from quayscope.relay import BadDestination
from quayscope.relay.destination import COLLECTOR, OTLP, PYROSCOPE, Destination
from quayscope.relay.spool import MAX_BYTES, Spool
from quayscope.relay.uplink import Uplink
from quayscope.relay.uplinks import Uplinks
from quayscope.sidecar.errors import BadOption
from quayscope.sidecar.gateway import OTLP_LISTEN, PUSH_LISTEN

__all__ = ["Outward", "open_uplinks", "outward_options", "take_outward"]

_MEGABYTE = 1 << 20


@dataclass(frozen=True)
class Outward:
    """See the flags of the same names; `spool_size` in MB."""

    pyroscope: str = ""
    otlp_endpoint: str = ""
    basic_auth_file: Path | None = None
    tenant: str = ""
    ca_file: Path | None = None
    otlp_token_file: Path | None = None
    spool: Path | None = None
    spool_size: int = MAX_BYTES // _MEGABYTE
    otlp_listen: str = OTLP_LISTEN
    push_listen: str = PUSH_LISTEN
    gateway_service: str = ""
    control: str = ""


_FILE = click.Path(path_type=Path)
_OPTIONS = (
    click.option(
        "--pyroscope",
        default="",
        metavar="URL",
        help="Where profiles are sent instead of a collector: a Pyroscope.",
    ),
    click.option(
        "--otlp-endpoint",
        default="",
        metavar="URL",
        help="Where spans and metrics are sent beside a Pyroscope: http(s)://HOST:PORT, without /v1/traces.",
    ),
    click.option("--basic-auth-file", type=_FILE, help="File with user:password, in place of the token."),
    click.option("--tenant", default="", help="Sent as X-Scope-OrgID."),
    click.option("--ca-file", type=_FILE, help="CAs (PEM) to believe instead of the system's."),
    click.option(
        "--otlp-token-file",
        type=_FILE,
        help="File with the bearer token for --otlp-endpoint, read as the other.",
    ),
    click.option(
        "--spool",
        type=click.Path(path_type=Path, file_okay=False),
        envvar="QUAYSCOPE_SPOOL",
        show_envvar=True,
        help="Folder for what cannot be sent yet; without it that stays in memory (32 MB) and ends with us.",
    ),
    click.option(
        "--spool-size",
        type=click.IntRange(32, 1 << 20),
        default=Outward.spool_size,
        show_default=True,
        metavar="MB",
        help="What the folder may hold; beyond it the oldest is dropped, and counted.",
    ),
    click.option(
        "--otlp-listen",
        default=OTLP_LISTEN,
        show_default=True,
        metavar="HOST:PORT|off",
        help="Where clients of this pod send OTLP over HTTP. Loopback only.",
    ),
    click.option(
        "--push-listen",
        default=PUSH_LISTEN,
        show_default=True,
        metavar="HOST:PORT|off",
        help="Where clients of this pod send Pyroscope pushes. Loopback only.",
    ),
    click.option(
        "--gateway-service",
        default="",
        metavar="NAME",
        help="service_name of all that comes to the gateway. Default: each client's own.",
    ),
    click.option(
        "--control",
        default="",
        metavar="URL",
        envvar="QUAYSCOPE_CONTROL",
        show_envvar=True,
        help="The collector's gRPC address, http(s)://HOST:4317: captures can be asked for there.",
    ),
)

_FLAGS = {
    ("url", COLLECTOR): "use --collector http://HOST:PORT",
    ("url", PYROSCOPE): "use --pyroscope http://HOST:PORT",
    ("url", OTLP): "use --otlp-endpoint http://HOST:PORT",
    ("token_file", OTLP): "check --otlp-token-file",
    "insecure": "use an https address, or --insecure where the network is trusted",
    "token_file": "check --token-file",
    "basic_auth_file": "check --basic-auth-file",
    "tenant": "check --tenant",
    "ca_file": "check --ca-file, which goes with https alone",
}
"""What to do about a field of a destination, or of one kind of destination."""


def outward_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the flags to a click command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def take_outward(options: dict[str, Any]) -> Outward:
    """Take these flags' values out of a command's."""
    return Outward(**{one.name: options.pop(one.name) for one in fields(Outward)})


def open_uplinks(outward: Outward, collector: str, token_file: Path | None, insecure: bool) -> Uplinks:
    """Return the uplink to a collector, or those to a Pyroscope and an OTLP backend; raises `BadOption`."""
    if bool(collector) == bool(outward.pyroscope):
        raise BadOption(
            "there is nowhere to send to" if not collector else "a collector and a Pyroscope are both given",
            next_step="use one of --collector URL and --pyroscope URL",
        )
    if outward.otlp_endpoint and collector:
        raise BadOption(
            "a collector takes spans and metrics itself", next_step="use --otlp-endpoint with --pyroscope"
        )
    first = Destination(
        collector or outward.pyroscope,
        COLLECTOR if collector else PYROSCOPE,
        token_file=token_file,
        basic_auth_file=outward.basic_auth_file,
        tenant=outward.tenant,
        ca_file=outward.ca_file,
        insecure=insecure,
    )
    destinations = [first]
    if outward.otlp_endpoint:
        destinations.append(
            Destination(
                outward.otlp_endpoint,
                OTLP,
                token_file=outward.otlp_token_file,
                ca_file=outward.ca_file if outward.otlp_endpoint.startswith("https:") else None,
                insecure=insecure,
            )
        )
    return Uplinks([_uplink(destination, outward) for destination in destinations])


def _uplink(destination: Destination, outward: Outward) -> Uplink:
    spool = None
    if outward.spool is not None:
        # A folder for each kind: what waits for a Pyroscope is encoded for one.
        spool = Spool(outward.spool / destination.kind, outward.spool_size * _MEGABYTE)
    try:
        return Uplink(destination, spool)
    except BadDestination as error:
        step = _FLAGS.get((error.field, destination.kind)) or _FLAGS.get(error.field, error.next_step)
        raise BadOption(str(error), next_step=step) from error
