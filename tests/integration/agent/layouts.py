"""Ways in which a pod has the agent: files of a mounted Secret, and a supervisord that starts gunicorn."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from integration.agent.serving import DEADLINE_S, Served, until


def mount_as_secret(files: Path, mount: Path) -> int:
    """Lay these files out as a kubelet mounts a Secret that holds them; return their bytes.

    The real files lie in a folder with a time in its name, reached through a link that is replaced at once
    when the Secret changes.
    """
    real = mount / "..2026_11_24_10_00_00.1234567890"
    real.mkdir(parents=True)
    (mount / "..data").symlink_to(real.name)
    size = 0
    for file in files.iterdir():
        content = file.read_bytes()
        size += len(content)
        (real / file.name).write_bytes(content)
        (real / file.name).chmod(0o444)
        (mount / file.name).symlink_to(Path("..data") / file.name)
    for folder in (real, mount):
        folder.chmod(0o555)
    return size


class Supervised(Served):
    """A supervisord that runs one program which serves, as Quay's pod does; ended with the test."""

    def __init__(self, directory: Path, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._log = directory / "web.log"
        configuration = directory / "supervisord.conf"
        configuration.write_text(
            "[supervisord]\n"
            "nodaemon=true\n"
            f"logfile={directory / 'supervisord.log'}\n"
            f"pidfile={directory / 'supervisord.pid'}\n"
            "[program:web]\n"
            f"command={' '.join(command)}\n"
            f"stdout_logfile={self._log}\n"
            "redirect_stderr=true\n"
            "autorestart=false\n"
            "stopasgroup=true\n"
            "killasgroup=true\n"
        )
        with (directory / "supervisord.out").open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "supervisor.supervisord", f"--configuration={configuration}"],
                cwd=directory,
                env={**os.environ, **environment},
                stdout=out,
                stderr=out,
            )
        try:
            super().__init__(int(until(self._port, "it listens")))
            until(self.answers, "it serves")
        except BaseException as error:
            self.stop()
            raise AssertionError(self.log()) from error

    def _port(self) -> str | None:
        found = re.search(r"Listening at: http://127\.0\.0\.1:(\d+)", self.log())
        return found[1] if found else None

    def log(self) -> str:
        """Return what the program wrote."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def stop(self) -> int:
        """End it and its program; return its exit code. May be called twice."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(DEADLINE_S)
        self.process.kill()
        return self.process.wait()
