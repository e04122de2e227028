"""Live stacks of programs of every kind: nearly all reach their root, nearly every frame has a name."""

from __future__ import annotations

import contextlib
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import clair_standin
from integration.sidecar.recorder import MIXED, prepare
from interpreters import find
from named_programs import build_cpp
from quayscope.profile import Profile
from quayscope.sidecar import procfs
from quayscope.sidecar.native.sampler import Sampler
from quayscope.sidecar.native.target import SampledTarget

_PYTHON = """
import hashlib, json, re, zlib
data = {str(n): ["x" * (n % 50), n, None] for n in range(2000)}
while True:
    text = json.dumps(data)
    json.loads(text)
    hashlib.pbkdf2_hmac("sha256", b"a", b"b", 20000)
    zlib.compress(text.encode())
    re.findall(r"x(x+)\\"", text)
    sorted(data, key=lambda name: -len(name))
"""


@contextlib.contextmanager
def _program(command: list[str]) -> Iterator[int]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def _postgres(version: str, load: type[Any], make_server: Callable[..., Any]) -> Iterator[int]:
    server = make_server(version)
    prepare(server)
    with contextlib.ExitStack() as loads:
        for statement in MIXED:
            loads.enter_context(load(server, statement))
        yield server.pid


@contextlib.contextmanager
def _go(checkout: Path, make_server: Callable[..., Any]) -> Iterator[int]:
    with (
        clair_standin.running(clair_standin.build(checkout), make_server("15").dsn) as service,
        clair_standin.Load(service),
    ):
        yield service.pid


@contextlib.contextmanager
def _cpp(folder: Path) -> Iterator[int]:
    with _program([str(build_cpp(folder) / "bare")]) as pid:
        yield pid


def _is_named(function: str, file: str) -> bool:
    return function not in (file.rpartition("/")[2], "[anonymous]", "[vdso]", "")


@pytest.mark.parametrize("kind", ["postgres 15", "postgres 18", "go", "c++", "cpython 3.12"])
def test_stacks_are_whole_and_named(
    kind: str,
    checkout: Path,
    make_server: Callable[..., Any],
    load: type[Any],
    until: Callable[..., Any],
    tmp_path: Path,
    full: bool,
) -> None:
    """99 % of user stacks end at their root and 99 % of frames have a name."""
    runs: dict[str, contextlib.AbstractContextManager[int]] = {
        "postgres 15": _postgres("15", load, make_server),
        "postgres 18": _postgres("18", load, make_server),
        "go": _go(checkout, make_server),
        "c++": _cpp(tmp_path),
        "cpython 3.12": _program([str(find("3.12")), "-c", _PYTHON]),
    }
    wanted = 5_000 if full else 600
    out: list[Profile] = []
    sampler = Sampler(out.extend, hz=999, window_s=1)
    with runs[kind] as pid:
        sampler.start()
        target = SampledTarget(
            "it", pid, lambda: procfs.descendants(pid), lambda _: "main", "main", chain=kind == "go"
        )
        tracked = sampler.add(target)
        until(lambda: tracked.samples >= wanted, 90.0, "enough samples")
        sampler.close()
    count = sum(profile.totals()[0] for profile in out)
    cut = sum(profile.losses.truncated for profile in out)
    frames = unknown = 0
    nameless: Counter[tuple[str, str]] = Counter()
    for profile in out:
        for (stack, _), values in profile.samples.items():
            own = [frame for frame in stack if frame.kind in ("native", "go")]
            frames += values[0] * len(own)
            for frame in own:
                if not _is_named(frame.function, frame.file):
                    unknown += values[0]
                    nameless[frame.function, frame.file] += values[0]
    print(
        kind, count, "samples,", f"{1 - cut / count:.4f} reach their root,", f"{unknown / frames:.4f} unknown"
    )
    assert count >= 0.9 * wanted
    assert cut <= 0.01 * count
    assert unknown <= 0.01 * frames, nameless.most_common(5)
    assert sampler.faults == 0
