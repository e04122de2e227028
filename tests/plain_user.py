"""Running Quayscope as a plain user from tests that run as root."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any, NamedTuple

ROOTS = ("agent", "sidecar", "collector", "load", "deploy")
NOBODY = 65534
"""The uid and gid that stand for a plain user."""


class PlainPython(NamedTuple):
    """An interpreter that the plain user can run, and the environment in which it finds Quayscope."""

    executable: str
    environment: dict[str, str]


def as_nobody() -> dict[str, Any]:
    """Return the arguments of `subprocess` that switch to the plain user; none where we are one."""
    return {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}


def find_plain_python(checkout: Path, spare: Path) -> PlainPython:
    """Return a working interpreter; copies the packages to `spare` where ours are closed to others.

    Ours may lie in a home that only root may enter; then another of the same version does.
    """
    installed = Path(sysconfig.get_paths()["purelib"])
    for packages in (installed, None):
        if packages is None:
            packages = spare / "site-packages"
            shutil.copytree(installed, packages)
            for root in ROOTS:
                shutil.copytree(checkout / root, spare / root)
            checkout = spare
        paths = [*(str(checkout / root) for root in ROOTS), str(packages)]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
            "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", ""))),
        }
        version = f"python3.{sys.version_info.minor}"
        for candidate in (sys.executable, f"/usr/bin/{version}", f"/usr/local/bin/{version}"):
            if _works(candidate, environment):
                return PlainPython(candidate, environment)
    raise AssertionError(
        f"uid {NOBODY} can run no {version} with our packages; next: apt-get install {version}, or make one "
        "readable for other users"
    )


def _works(executable: str, environment: dict[str, str]) -> bool:
    command = [executable, "-c", "import click, psycopg, quayscope.cli.main, quayscope.sidecar.commands"]
    try:
        done = subprocess.run(command, capture_output=True, env=environment, cwd="/", **as_nobody())
    except OSError:
        return False
    return done.returncode == 0
