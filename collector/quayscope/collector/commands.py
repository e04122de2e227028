"""The command line of the collector."""

from __future__ import annotations

import json
import os
import signal
import tempfile
import threading
from pathlib import Path

import click

from quayscope.collector.access import Certificate
from quayscope.collector.control.triggers import read_rule
from quayscope.collector.errors import BadRequest, CannotListen, StoreUnavailable
from quayscope.collector.identity import TokenReviews
from quayscope.collector.server import Address, CollectorServer

__all__ = ["collector"]

LISTEN = "127.0.0.1:4040"
GRPC_LISTEN = "127.0.0.1:4317"
EPILOG = """\b
Examples:
  quayscope collector
  quayscope collector --data /var/lib/quayscope --pyroscope http://127.0.0.1:4041
  quayscope collector --listen 127.0.0.1:0 --grpc-listen 127.0.0.1:0 --ready-file ready.json
"""


def _data_home() -> Path:
    """Return where the data goes by default: the user's data directory, as the XDG base directories say."""
    base = os.environ.get("XDG_DATA_HOME", "")
    return (Path(base) if base else Path.home() / ".local" / "share") / "quayscope"


@click.command(epilog=EPILOG, context_settings={"show_default": True})
@click.option(
    "--listen",
    metavar="HOST:PORT",
    default=LISTEN,
    envvar="QUAYSCOPE_LISTEN",
    show_envvar=True,
    help="Where the page, the API, pushes and OTLP/HTTP are served; port 0 takes a free one.",
)
@click.option(
    "--grpc-listen",
    metavar="HOST:PORT",
    default=GRPC_LISTEN,
    envvar="QUAYSCOPE_GRPC_LISTEN",
    show_envvar=True,
    help="Where OTLP and pushes are served over gRPC; port 0 takes a free one.",
)
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    default=None,
    envvar="QUAYSCOPE_DATA",
    show_envvar=True,
    show_default="the user's data directory",
    help="The directory of the store; made where it is missing.",
)
@click.option(
    "--pyroscope",
    metavar="URL",
    default="",
    envvar="QUAYSCOPE_PYROSCOPE",
    show_envvar=True,
    help="Forward every stored profile to this Pyroscope as well.",
)
@click.option(
    "--ready-file",
    type=click.Path(dir_okay=False, path_type=Path),
    default=None,
    help="Written once serving, as JSON: http, grpc, pid.",
)
@click.option(
    "--tokens",
    type=click.Path(dir_okay=False, path_type=Path),
    default=None,
    envvar="QUAYSCOPE_TOKENS",
    show_envvar=True,
    help="Who may do what, a line each: NAME SCOPES TOKEN (docs/now.md). Without it: everybody.",
)
@click.option(
    "--token-audience",
    default="",
    envvar="QUAYSCOPE_TOKEN_AUDIENCE",
    show_envvar=True,
    help="Beside --tokens: pods may write with a service account's token for this audience (docs/deploy.md).",
)
@click.option(
    "--tls-certificate",
    type=click.Path(dir_okay=False, path_type=Path),
    default=None,
    envvar="QUAYSCOPE_TLS_CERTIFICATE",
    show_envvar=True,
    help="PEM of the certificate and its chain: both addresses speak TLS. Read again when it changes.",
)
@click.option(
    "--tls-key",
    type=click.Path(dir_okay=False, path_type=Path),
    default=None,
    envvar="QUAYSCOPE_TLS_KEY",
    show_envvar=True,
    help="PEM of its key.",
)
@click.option(
    "--trigger",
    "triggers",
    multiple=True,
    metavar="NAME=NUMBER",
    help="Capture everything when a measurement crosses this: p99, errors, throttled, sessions or hub "
    "(docs/now.md). Repeatable.",
)
@click.option(
    "--insecure",
    is_flag=True,
    help="Allow listening beyond loopback without TLS and tokens: whoever reaches the port reads and writes.",
)
def collector(
    listen: str,
    grpc_listen: str,
    data: Path | None,
    pyroscope: str,
    ready_file: Path | None,
    tokens: Path | None,
    token_audience: str,
    tls_certificate: Path | None,
    tls_key: Path | None,
    triggers: tuple[str, ...],
    insecure: bool,
) -> None:
    """Receive profiles, spans and metrics, keep them, answer questions about them and show them."""
    http, grpc = Address(listen), Address(grpc_listen)
    try:
        rules = [read_rule(text) for text in triggers]
    except BadRequest as error:
        raise click.UsageError(f"{error}: {error.next_step}") from error
    if (tls_certificate is None) != (tls_key is None):
        raise click.UsageError("--tls-certificate and --tls-key go together")
    certificate = Certificate(tls_certificate, tls_key) if tls_certificate and tls_key else None
    missing = [word for word, held in (("TLS", certificate), ("tokens", tokens)) if held is None]
    for flag, address in (("--listen", http), ("--grpc-listen", grpc)):
        if not address.is_loopback and missing and not insecure:
            raise CannotListen(
                f"{flag} {address.host} can be reached from elsewhere without {' and '.join(missing)}",
                next_step="listen on 127.0.0.1, add --tls-certificate, --tls-key and --tokens, or --insecure",
                exit_code=2,
            )
    if token_audience and tokens is None:
        raise click.UsageError("--token-audience goes with --tokens: without that everybody may everything")
    reviews = TokenReviews(token_audience) if token_audience else None
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    server = CollectorServer(
        http,
        grpc,
        data or _data_home(),
        pyroscope,
        tokens=tokens,
        reviews=reviews,
        certificate=certificate,
        triggers=rules,
    )
    server.start()
    if ready_file:
        _write_ready(ready_file, {"http": server.http_url, "grpc": server.grpc_address, "pid": os.getpid()})
    stopping.wait()
    if not server.stop():
        raise StoreUnavailable("not everything that waited could be written", next_step="see the log")


def _write_ready(path: Path, content: dict[str, str | int]) -> None:
    """Write the file whole or not at all: whoever waits for it reads it the moment it is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        json.dump(content, file)
    Path(file.name).replace(path)
