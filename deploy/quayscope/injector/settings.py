"""What is put into pods, as the injector's flags say it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from quayscope.injector.errors import BadSetting

__all__ = ["CAPABILITIES", "MODES", "Settings"]

CAPABILITIES: Mapping[str, tuple[str, ...]] = {
    "restricted": (),
    "perfmon": ("PERFMON",),
    "full": ("PERFMON", "SYS_PTRACE", "CHECKPOINT_RESTORE", "DAC_READ_SEARCH"),
}
"""By mode, what is added after ALL was dropped; what each buys is in docs/privileges.md."""
MODES = tuple(CAPABILITIES)


@dataclass(frozen=True)
class Settings:
    """One injector's settings; raises `BadSetting`.

    `collector` is where sidecars send, an address without a path, `control` its gRPC address, which they keep
    a stream to; empty: none. `uids` are the users of images that a pod
    specification does not name, by service: needed where no platform assigns one (plain Kubernetes), since a
    sidecar without privileges reads processes of its own user alone. `ca_config_map` is a ConfigMap of the
    pod's namespace, `token_secret` a Secret there with a key `token`, used instead of the service account's.
    `native` asks for restartable init containers (Kubernetes 1.29). `namespace` is the injector's own, whose
    pods it leaves alone.
    """

    collector: str
    agent_image: str
    sidecar_image: str
    control: str = ""
    mode: str = "restricted"
    insecure: bool = False
    ca_config_map: str = ""
    ca_key: str = "service-ca.crt"
    token_secret: str = ""
    token_audience: str = "quayscope"  # noqa: S105 - a name, no secret
    uids: Mapping[str, int] = field(default_factory=dict)
    requests: Mapping[str, str] = field(default_factory=lambda: {"cpu": "50m", "memory": "192Mi"})
    limits: Mapping[str, str] = field(default_factory=lambda: {"cpu": "500m", "memory": "512Mi"})
    native: bool = False
    namespace: str = ""

    def __post_init__(self) -> None:
        if self.mode not in CAPABILITIES:
            raise BadSetting(f"{self.mode!r} is no mode", next_step=f"use one of {', '.join(MODES)}")
        addresses = {"--collector": self.collector, **({"--control": self.control} if self.control else {})}
        for flag, address in addresses.items():
            self._check(flag, address)

    def _check(self, flag: str, address: str) -> None:
        try:
            parts = urlsplit(address)
            valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            valid = False
        if not valid or parts.username is not None:
            raise BadSetting("the collector's address is no http(s)://HOST:PORT", next_step=f"check {flag}")
        if parts.scheme == "http" and not self.insecure:
            raise BadSetting(
                "tokens would be sent to the collector without TLS",
                next_step="use an https address, or --insecure where the network is trusted",
            )
