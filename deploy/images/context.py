"""Makes the folder that the images are built from: the agent's files, and wheels of everything else.

    python deploy/images/context.py build/images
    buildah build -f deploy/images/sidecar.Containerfile -t quayscope-sidecar build/images

Needs the project installed, and pip's index; the builds themselves need no network. `--extras` (default all
of them) are those that wheels are taken for, `--cpython` the interpreters that the agent's packages are taken
for; none: the pure-Python agent alone.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CPYTHON = ("3.9", "3.11", "3.12")
"""Those of Quay's images: 3.8 and older have none of ours, 3.12 is today's."""
COMPANIONS = {
    "opentelemetry": (
        "opentelemetry-sdk",
        "opentelemetry-instrumentation-flask",
        "opentelemetry-instrumentation-psycopg2",
    ),
    "pyroscope": ("pyroscope-io>=1.4,<1.5",),
}
"""By the module they bring, see quayscope.agent.companions."""


def main() -> None:
    """Fill the folder."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--extras", nargs="*", default=["all"])
    parser.add_argument("--cpython", nargs="*", default=list(CPYTHON))
    asked = parser.parse_args()
    agent = asked.folder / "agent"
    agent.mkdir(parents=True, exist_ok=True)
    _run(sys.executable, "-m", "quayscope.cli.main", "agent", "bundle", str(agent))
    for version in asked.cpython:
        for module, packages in COMPANIONS.items():
            target = agent / "packages" / f"cp{version.replace('.', '')}" / module
            only = ["--only-binary=:all:", "--python-version", version, "--target", str(target)]
            _run(sys.executable, "-m", "pip", "install", "--quiet", "--upgrade", *only, *packages)
    wheels = asked.folder / "wheels"
    wheels.mkdir(exist_ok=True)
    for extra in asked.extras:
        _run(sys.executable, "-m", "pip", "wheel", "--quiet", "-w", str(wheels), f"{ROOT}[{extra}]")


def _run(*command: str) -> None:
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
