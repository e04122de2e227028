"""Programs to be sampled, and cgroups to put them into; for tests and benchmarks."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from quayscope.profile import Profile
from quayscope.sidecar import procfs
from quayscope.sidecar.native import cgroups

SHARES = {"burn_forty": 40, "burn_thirty": 30, "burn_twenty": 20, "burn_ten": 10}
"""What part of its CPU, in per cent, the program of `SHARES_SOURCE` spends in each function."""

_BURN = """
static __attribute__((noinline)) void {name}(void) {{
    /* Each does something else: functions that are alike are folded into one. */
    volatile unsigned long x = {share};
    for (int i = 0; i < 20000; i++) x = x * {share}1 + 7;
}}
"""
SHARES_SOURCE = f"""
#include <signal.h>
#include <stdio.h>
#include <time.h>
static volatile int stop;
static void end(int s) {{ (void)s; stop = 1; }}
static long used(void) {{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return t.tv_sec * 1000000000L + t.tv_nsec;
}}
{"".join(_BURN.format(name=name, share=share) for name, share in SHARES.items())}
int main(void) {{
    void (*work[])(void) = {{ {", ".join(SHARES)} }};
    long wanted[] = {{ {", ".join(map(str, SHARES.values()))} }}, spent[4] = {{0}};
    unsigned long chance = 1;
    signal(SIGTERM, end);
    while (!stop) {{
        int next = 0;
        for (int i = 1; i < 4; i++)
            if (spent[i] * wanted[next] < spent[next] * wanted[i]) next = i;
        long before = used();
        /* Stretches of chance lengths: regular ones could keep step with a sampler. */
        chance = chance * 6364136223846793005UL + 1442695040888963407UL;
        for (unsigned i = 0; i < 1 + (chance >> 58); i++) work[next]();
        spent[next] += used() - before;
    }}
    for (int i = 0; i < 4; i++) printf("%ld\\n", spent[i]);
    return 0;
}}
"""
"""Spends its CPU in four functions, by its own CPU clock; at SIGTERM prints the nanoseconds of each."""

FORKER_SOURCE = r"""
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
static void burn(long ns) {
    struct timespec t;
    do clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t); while (t.tv_sec * 1000000000L + t.tv_nsec < ns);
}
int main(int argc, char **argv) {
    long ns = atol(argv[1]) * 1000;
    (void)argc;
    for (;;) {
        if (fork() == 0) { burn(ns); _exit(0); }
        wait(0);
    }
}
"""
"""Forks children one after the other, each of which burns ARGUMENT microseconds of CPU."""

BURN_SOURCE = "int main(void) { volatile unsigned long x = 1; for (;;) x = x * 3 + 1; }\n"


def build(source: str, folder: Path, name: str, *options: str) -> Path:
    """Compile a C program, by default without frame pointers."""
    path = folder / f"{name}.c"
    path.write_text(source)
    program = folder / name
    flags = options or ("-O1", "-fomit-frame-pointer")
    subprocess.run(["gcc", *flags, "-o", program, path, "-pthread"], check=True, capture_output=True)
    program.chmod(0o755)
    return program


class TestCgroup:
    """A cgroup of the hierarchy that perf events go by, below this process's own. Needs root."""

    __test__ = False

    def __init__(self) -> None:
        held = cgroups.parse_hierarchy(Path("/proc/self/cgroup").read_text())
        assert held is not None, "no cgroup hierarchy for perf events here"
        path, version = held
        mounts = cgroups.parse_mounts(Path("/proc/self/mountinfo").read_text(), version)
        assert mounts, "the hierarchy is not mounted"
        parent = Path(mounts[0].point) / os.path.relpath(path, mounts[0].root)
        self.version = version
        self.directory = Path(tempfile.mkdtemp(prefix="qs-test-", dir=parent))

    def adopt(self, pid: int) -> None:
        """Move a process and all below it in."""
        # Again for those that were forked while the others were moved.
        for _ in range(3):
            for member in (pid, *procfs.descendants(pid)):
                with contextlib.suppress(OSError):
                    (self.directory / "cgroup.procs").write_text(str(member))

    def start(self, *command: str | Path, **options: Any) -> subprocess.Popen[bytes]:
        """Start a program inside."""
        procs = str(self.directory / "cgroup.procs")
        shell = ["sh", "-c", f'echo $$ > {procs} && exec "$@"', "sh", *map(str, command)]
        return subprocess.Popen(shell, **options)

    def cpu_ns(self) -> int:
        fields = (self.directory / "cpu.stat").read_text().split()
        return int(fields[fields.index("usage_usec") + 1]) * 1000

    def remove(self) -> None:
        """Kill what is inside and remove it."""
        deadline = time.monotonic() + 10
        while True:
            for pid in (self.directory / "cgroup.procs").read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            try:
                self.directory.rmdir()
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
            else:
                return


@contextlib.contextmanager
def own_cgroup() -> Iterator[TestCgroup]:
    """A cgroup for a while."""
    made = TestCgroup()
    try:
        yield made
    finally:
        made.remove()


def end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Kill processes and wait for them."""
    for process in processes:
        process.kill()
    for process in processes:
        process.wait(10)


def cpu_of(profiles: Sequence[Profile]) -> int:
    """The CPU nanoseconds that profiles hold."""
    return sum(values[1] for profile in profiles for values in profile.samples.values())


def count_of(profiles: Sequence[Profile]) -> int:
    """The samples that profiles hold."""
    return sum(values[0] for profile in profiles for values in profile.samples.values())
