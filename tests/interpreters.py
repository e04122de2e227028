"""The CPythons that the agent's tests run applications on, each with what an application of its age has.

`find` looks for an interpreter, `bare` returns one with nothing installed, `prepared` one with its packages;
both are set up once under build/venvs/. Run as a script this sets up all of them, or says which are missing.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

REQUIREMENTS = {
    "3.9": (  # the oldest of everything that the agent is made for
        "gunicorn==20.1.0",
        "setuptools>=65,<81",  # gunicorn 20 imports pkg_resources
        "gevent==22.10.2",
        "greenlet==2.0.2",
        "flask==2.2.5",
        "werkzeug==2.2.3",
        "psycopg2-binary==2.9.9",
        "opentelemetry-sdk==1.20.0",
        "opentelemetry-instrumentation-flask==0.41b0",
        "opentelemetry-instrumentation-psycopg2==0.41b0",
    ),
    "3.12": (  # what Quay pins
        "gunicorn==23.0.0",
        "gevent==24.11.1",
        "greenlet==3.1.1",
        "flask==2.3.2",
        "werkzeug==3.0.6",
        "psycopg2-binary==2.9.9",
        "opentelemetry-sdk==1.32.1",
        "opentelemetry-instrumentation-flask==0.53b1",
        "opentelemetry-instrumentation-psycopg2==0.53b1",
    ),
    "3.13": (  # the newest that fit together
        "gunicorn>=27,<28",
        "gevent>=26.9,<27",
        "flask>=3.1,<4",
        "psycopg2-binary>=2.9.13,<3",
        "opentelemetry-sdk>=1.45,<1.46",
        "opentelemetry-instrumentation-flask>=0.66b1,<0.67",
        "opentelemetry-instrumentation-psycopg2>=0.66b1,<0.67",
    ),
}
VERSIONS = tuple(REQUIREMENTS)
ENVIRONMENTS = Path(__file__).parent.parent / "build" / "venvs"


class Missing(Exception):
    """An interpreter is not here; the message says how to get it."""


@functools.cache
def find(version: str) -> Path:
    """Return the CPython of this version: on PATH, else the newest that pyenv keeps. Raises `Missing`."""
    for candidate in _candidates(version):
        code = "import ensurepip, sys; print('%d.%d' % sys.version_info[:2], sys.implementation.name)"
        try:
            # A shim of pyenv is found on PATH whether or not its version is switched on.
            done = subprocess.run([candidate, "-c", code], capture_output=True, text=True, timeout=30)
        except OSError:
            continue
        if done.stdout.split() == [version, "cpython"]:
            return candidate
    raise Missing(
        f"CPython {version} with ensurepip was not found on PATH or under pyenv; "
        f"next: apt-get install python{version}-venv, or pyenv install {version}"
    )


def _candidates(version: str) -> Iterator[Path]:
    for folder in os.get_exec_path():
        candidate = Path(folder) / f"python{version}"
        if candidate.is_file():
            yield candidate
    pyenv = Path(os.environ.get("PYENV_ROOT") or "~/.pyenv").expanduser()
    kept = (path for path in pyenv.glob(f"versions/{version}.*/bin/python") if _patch(path) >= 0)
    yield from sorted(kept, key=_patch, reverse=True)


def _patch(path: Path) -> int:
    last = path.parts[-3].rpartition(".")[2]
    return int(last) if last.isdecimal() else -1


def bare(version: str) -> Path:
    """Return an interpreter of this version that has nothing but the standard library."""
    return _environment(version, ())


def prepared(version: str) -> Path:
    """Return an interpreter of this version with its packages; may take half a minute the first time."""
    return _environment(version, REQUIREMENTS[version])


def _environment(version: str, requirements: tuple[str, ...]) -> Path:
    base = find(version)
    about = "\n".join((os.path.realpath(base), *requirements))
    folder = ENVIRONMENTS / f"{version}-{hashlib.sha256(about.encode()).hexdigest()[:12]}"
    python, made = folder / "bin" / "python", folder / ".made"
    ENVIRONMENTS.mkdir(parents=True, exist_ok=True)
    with (ENVIRONMENTS / f"{version}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another run of the tests may be at it
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)
            for step in _steps(str(base), str(folder), requirements):
                done = subprocess.run(step, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
                if done.returncode:
                    shutil.rmtree(folder, ignore_errors=True)
                    raise Missing(f"`{' '.join(step)}` failed:\n{done.stdout}")
            made.touch()
    return python


def _steps(base: str, folder: str, requirements: tuple[str, ...]) -> Iterator[list[str]]:
    """Yield the commands that set an environment up: wheels only, so that no compiler is needed."""
    uv = shutil.which("uv")
    python = f"{folder}/bin/python"
    wheels = ["--quiet", "--only-binary=:all:", *requirements]
    if not requirements:
        yield [base, "-m", "venv", "--without-pip", folder]
    elif uv:
        yield [uv, "venv", "--quiet", f"--python={base}", folder]
        yield [uv, "pip", "install", f"--python={python}", *wheels]
    else:
        yield [base, "-m", "venv", folder]
        yield [python, "-m", "pip", "install", "--disable-pip-version-check", *wheels]


def _main() -> int:
    problems: list[str] = []

    def prepare(version: str) -> None:
        try:
            bare(version)
            print(f"CPython {version}: {prepared(version)}", flush=True)
        except Missing as missing:
            problems.append(str(missing))

    threads = [threading.Thread(target=prepare, args=(version,)) for version in VERSIONS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 2 if problems else 0


if __name__ == "__main__":
    sys.exit(_main())
