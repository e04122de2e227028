"""The seccomp filter that a container gets by default, in the form that an OCI runtime takes.

Which calls it allows depends on the capabilities that are listed for the container, effective or not: so it
comes that PERFMON opens `perf_event_open` to a user to whom the capability itself gives nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

__all__ = ["default_filter"]

_PROFILE = Path(__file__).with_name("seccomp_default.json")


def default_filter(capabilities: Iterable[str]) -> dict[str, Any]:
    """Return `linux.seccomp` of an OCI configuration; capabilities are named without `CAP_`."""
    profile = json.loads(_PROFILE.read_text(encoding="utf-8"))
    machine = os.uname().machine
    listed = {name.removeprefix("CAP_") for name in capabilities}
    names = set(profile["allowed"]) | set(profile["architecture"].get(machine, ()))
    for capability in listed:
        names.update(profile["capability"].get(capability, ()))
    calls: list[dict[str, Any]] = [{"names": sorted(names), "action": "SCMP_ACT_ALLOW"}]
    for rule in profile["arguments"]:
        if listed.isdisjoint(name.removeprefix("CAP_") for name in rule["unless_capability"]):
            calls.append({"names": rule["names"], "action": "SCMP_ACT_ALLOW", "args": rule["args"]})
    for rule in profile["refused"]:
        if listed.isdisjoint(name.removeprefix("CAP_") for name in rule["unless_capability"]):
            calls.append({"names": rule["names"], "action": "SCMP_ACT_ERRNO", "errnoRet": rule["errno"]})
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": profile["errno"],
        "architectures": ["SCMP_ARCH_X86_64" if machine == "x86_64" else "SCMP_ARCH_AARCH64"],
        "syscalls": calls,
    }
