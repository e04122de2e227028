"""What a sidecar's container runs in the tests: the doctor, a look at /proc, samples of the target's cgroup.

    python inside.py DOCTOR-ARGUMENTS ...

Prints one JSON object: `doctor` what it printed and `code` how it ended; `visible` the cgroup and command
line of each visible process by pid, `own` our own cgroup and `target` the target's; `cgroup` and `everybody`
samples by pid, of the target's cgroup and, as the control, of whole CPUs; empty where not permitted.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from quayscope.sidecar import procfs
from quayscope.sidecar.doctor.subjects import choose
from quayscope.sidecar.native.events import open_event

_RING = 64 << 10
_ENOUGH = 60
_PATIENCE_S = 15.0
_HEADER = struct.Struct("<IHH")
_SAMPLE = 9


def cgroup(pid: int | str) -> str:
    try:
        return Path(f"/proc/{pid}/cgroup").read_text().splitlines()[-1].partition("::")[2]
    except (OSError, IndexError):
        return ""


def doctor(arguments: list[str]) -> tuple[object, int]:
    command = [sys.executable, "-m", "quayscope.cli.main", "sidecar", "doctor", "--json", *arguments]
    done = subprocess.run(command, capture_output=True)
    try:
        return json.loads(done.stdout), done.returncode
    except ValueError:
        return done.stderr.decode(), done.returncode


class Samples:
    """Counts samples by pid of one event a CPU, until there are enough or time is up."""

    def __init__(self, of: int, *, in_cgroup: bool) -> None:
        self.pids = Counter[int]()
        self._rings = []
        for cpu in sorted(os.sched_getaffinity(0)):
            descriptor = open_event(of, cpu, 999, kernel=False, cgroup=in_cgroup)
            self._rings.append(mmap.mmap(descriptor, _RING + mmap.PAGESIZE))
            os.close(descriptor)

    def take(self) -> int:
        for ring in self._rings:
            head = int.from_bytes(ring[1024:1032], "little")
            at = int.from_bytes(ring[1032:1040], "little")
            while at < head:
                kind, _, size = _HEADER.unpack(self._bytes(ring, at, _HEADER.size))
                if kind == _SAMPLE:
                    self.pids[int.from_bytes(self._bytes(ring, at + 16, 4), "little")] += 1
                at += size
            ring[1032:1040] = at.to_bytes(8, "little")
        return self.pids.total()

    @staticmethod
    def _bytes(ring: mmap.mmap, at: int, size: int) -> bytes:
        return bytes(ring[mmap.PAGESIZE + (at + i) % _RING] for i in range(size))


def sample(directory: str) -> tuple[dict[int, int], dict[int, int]]:
    """Sample the cgroup and, until both pods were seen, whole CPUs."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        own = Samples(descriptor, in_cgroup=True)
        everybody = Samples(-1, in_cgroup=False)
    except OSError:
        return {}, {}
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        time.sleep(0.02)
        taken = own.take()
        everybody.take()
        if taken >= _ENOUGH and everybody.pids[0] >= _ENOUGH:
            break
    return dict(own.pids), dict(everybody.pids)


def main() -> None:
    subjects, _ = choose()
    target = subjects[0].pid
    code: int
    said, code = doctor(sys.argv[1:])
    own, everybody = sample(f"/proc/{target}/root/sys/fs/cgroup")
    visible = {pid: [cgroup(pid), procfs.command_line(pid)] for pid in procfs.pids()}
    found = {"doctor": said, "code": code, "visible": visible, "own": cgroup("self")}
    print(json.dumps({**found, "target": cgroup(target), "cgroup": own, "everybody": everybody}))


if __name__ == "__main__":
    main()
