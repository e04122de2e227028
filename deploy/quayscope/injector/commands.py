"""`quayscope injector`: the command line of the webhook."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import yaml

from quayscope.injector.certificates import ReloadingTls
from quayscope.injector.cluster import NATIVE_SINCE, ClusterVersion, parse_version
from quayscope.injector.errors import BadSetting, MalformedReview
from quayscope.injector.inject import inject
from quayscope.injector.pods import LeftAlone
from quayscope.injector.review import MAX_BYTES, read_pod
from quayscope.injector.server import Reviews, WebhookServer
from quayscope.injector.settings import MODES, Settings

__all__ = ["injector"]

_EPILOG = """\b
Examples:
  quayscope injector --collector https://quayscope.quayscope.svc:4040 \\
      --agent-image registry.example/quayscope-agent:0.1.0 \\
      --sidecar-image registry.example/quayscope-sidecar:0.1.0 \\
      --listen 0.0.0.0:8443 --certificate /tls/tls.crt --key /tls/tls.key
  kubectl get pod quay-0 -o yaml | quayscope injector --collector https://collector:4040 \\
      --agent-image a --sidecar-image s render
"""


def _pairs(_context: click.Context, parameter: click.Parameter, value: str) -> dict[str, str]:
    pairs = {}
    for part in filter(None, value.split(",")):
        name, equals, content = part.partition("=")
        if not (name and equals and content):
            raise click.BadParameter(f"expected NAME=VALUE,..., got {value!r}", param=parameter)
        pairs[name] = content
    return pairs


def _uids(context: click.Context, parameter: click.Parameter, value: str) -> dict[str, int]:
    pairs = _pairs(context, parameter, value)
    if not all(uid.isascii() and uid.isdigit() and int(uid) > 0 for uid in pairs.values()):
        raise click.BadParameter("expected COMPONENT=UID,...", param=parameter)
    return {name: int(uid) for name, uid in pairs.items()}


@click.group(epilog=_EPILOG, invoke_without_command=True, context_settings={"show_default": True})
@click.option("--collector", required=True, envvar="QUAYSCOPE_COLLECTOR", show_envvar=True, metavar="URL")
@click.option(
    "--control",
    default="",
    metavar="URL",
    help="Its gRPC address, for captures on demand; else there are none.",
)
@click.option("--agent-image", required=True, envvar="QUAYSCOPE_AGENT_IMAGE", show_envvar=True)
@click.option("--sidecar-image", required=True, envvar="QUAYSCOPE_SIDECAR_IMAGE", show_envvar=True)
@click.option("--mode", type=click.Choice(MODES), default="restricted", help="What sidecars may do.")
@click.option("--insecure", is_flag=True, help="Allow sidecars to send without TLS.")
@click.option("--ca-config-map", default="", help="ConfigMap of each namespace with the collector's CA.")
@click.option("--ca-key", default="service-ca.crt", help="Its key.")
@click.option(
    "--token-secret", default="", help="Secret of each namespace with a key `token`, for a static one."
)
@click.option("--token-audience", default="quayscope", help="Audience of the service account's token.")
@click.option(
    "--uids",
    default="",
    metavar="COMPONENT=UID,...",
    callback=_uids,
    help="Users of images, where no platform assigns them.",
)
@click.option("--requests", default="cpu=50m,memory=192Mi", callback=_pairs, help="Of each sidecar.")
@click.option("--limits", default="cpu=500m,memory=512Mi", callback=_pairs, help="Of each sidecar.")
@click.option(
    "--kubernetes",
    default="auto",
    metavar="auto|X.Y",
    help=f"Server version; since {'.'.join(map(str, NATIVE_SINCE))} there are restartable init containers.",
)
@click.option(
    "--namespace", default="", envvar="QUAYSCOPE_NAMESPACE", show_envvar=True, help="Our own, left alone."
)
@click.option(
    "--listen", default="127.0.0.1:8443", metavar="HOST:PORT", help="Beyond loopback only with TLS."
)
@click.option("--certificate", type=click.Path(path_type=Path), help="PEM; read again when it changes.")
@click.option("--key", type=click.Path(path_type=Path), help="Its key, PEM.")
@click.option("--ready-file", type=click.Path(path_type=Path), help="Written as JSON once it serves.")
@click.pass_context
def injector(
    context: click.Context,
    /,
    kubernetes: str,
    listen: str,
    certificate: Path | None,
    key: Path | None,
    ready_file: Path | None,
    **options: Any,
) -> None:
    """Answer admission reviews: put the agent and the sidecar into pods that ask for it.

    A pod asks with the label quayscope.io/inject=true. Ends on SIGTERM.
    """
    native = _native(kubernetes)
    context.obj = (Settings(**options), native)
    if context.invoked_subcommand is not None:
        return
    if (certificate is None) != (key is None):
        raise BadSetting("a certificate needs its key, and a key its certificate")
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    tls = ReloadingTls(certificate, key) if certificate and key else None
    server = WebhookServer(listen, Reviews(context.obj[0], native), tls)
    server.start()
    if ready_file:
        temporary = ready_file.with_name(f"{ready_file.name}.{os.getpid()}")
        temporary.write_text(json.dumps({"url": server.url, "pid": os.getpid()}), encoding="utf-8")
        temporary.replace(ready_file)
    stopping.wait()
    server.stop()


@injector.command()
@click.option(
    "--in-namespace", default="", help="The namespace the pod is made in, where it does not say so."
)
@click.pass_obj
def render(configured: tuple[Settings, Callable[[], bool]], in_namespace: str) -> None:
    """Print the pod of standard input (YAML or JSON) as it would be made.

    Ends with 1 and the reason on standard error where the pod is left alone.
    """
    settings, native = configured
    text = sys.stdin.buffer.read(MAX_BYTES + 1)
    if len(text) > MAX_BYTES:
        raise MalformedReview("the pod is longer than an API server takes")
    try:
        pod = read_pod(yaml.safe_load(text))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise MalformedReview(f"standard input is no YAML: {error}") from error
    settings = Settings(**{**vars(settings), "native": native()})
    namespace = in_namespace or str(pod["metadata"].get("namespace") or "")
    made, subject = inject(pod, settings, namespace=namespace)
    # Without what YAML makes of one object in two places: anchors.
    click.echo(yaml.safe_dump(json.loads(json.dumps(made)), sort_keys=False), nl=False)
    if isinstance(subject, LeftAlone):
        click.echo(
            f"left alone: {subject.outcome}" + (f": {subject.warning}" if subject.warning else ""), err=True
        )
        raise click.exceptions.Exit(1)


def _native(kubernetes: str) -> Callable[[], bool]:
    if kubernetes == "auto":
        return ClusterVersion().has_native_sidecars
    major, _, minor = kubernetes.partition(".")
    version = parse_version(major, minor)
    if version is None:
        raise BadSetting(f"--kubernetes {kubernetes!r} is no version", next_step="use auto or, say, 1.29")
    return lambda: version >= NATIVE_SINCE
