"""Names from debug files that a debuginfod server has."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from named_programs import (
    build_cpp,
    compare,
    cpp_name,
    functions,
    place,
    run,
    running,
    space_of,
)
from quayscope.sidecar.errors import BadOption
from quayscope.sidecar.native.debuginfod import Debuginfod
from quayscope.sidecar.native.objects import Objects
from quayscope.sidecar.native.symbols import Symbols


@pytest.fixture(scope="module")
def cpp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_cpp(tmp_path_factory.mktemp("cpp"))


class DebugServer:
    """A debuginfod on loopback that has what `files` holds, by build-id; `statuses` are what it answered."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.redirect = ""
        self.statuses: list[int] = []
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                build_id = self.path.removeprefix("/buildid/").removesuffix("/debuginfo")
                data = server.files.get(build_id)
                status = 302 if server.redirect else 404 if data is None else 200
                self.send_response(status)
                if server.redirect:
                    self.send_header("Location", server.redirect)
                self.end_headers()
                server.statuses.append(status)
                self.wfile.write(data or b"")

            def log_message(self, *_: object) -> None:
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()


@pytest.fixture
def debug_server() -> Iterator[DebugServer]:
    server = DebugServer()
    yield server
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture
def fetcher(debug_server: DebugServer, tmp_path: Path) -> Iterator[Debuginfod]:
    fetching = Debuginfod(debug_server.url, tmp_path / "cache", max_bytes=4 << 20)
    fetching.start()
    yield fetching
    fetching.close()


def test_fetched_debug_file(
    cpp: Path, debug_server: DebugServer, fetcher: Debuginfod, until: Callable[..., Any]
) -> None:
    """Names come from a debuginfod server: at first there are none and nobody waits, then they are there."""
    build_id = run("readelf", "-n", cpp / "full").split("Build ID: ")[1].split()[0]
    debug_server.files[build_id] = (cpp / "full").read_bytes()
    truth = functions(cpp / "full")
    symbols = Symbols(Objects(), fetcher)
    with running(cpp / "bare") as process:
        space = space_of(process.pid)
        main = next(address for address, names in truth.items() if "main" in names)
        lies = place(space, str(cpp / "bare"), main)
        assert lies is not None
        assert symbols.frames(space, lies).frames[0].function == f"bare+{main:#x}"
        until(symbols.refresh, 10.0, "the file is fetched")
        shares = compare(symbols, space, str(cpp / "bare"), truth, cpp_name)
    assert shares[0] >= 0.99
    assert shares[1] <= 0.01
    assert debug_server.statuses == [200]


def test_what_a_debug_server_may_answer(
    cpp: Path, debug_server: DebugServer, fetcher: Debuginfod, until: Callable[..., Any]
) -> None:
    """A missing file is asked for once; one of another build, no object, too long, elsewhere: counted."""
    full = (cpp / "full").read_bytes()
    debug_server.files |= {"aa" * 20: full, "bb" * 20: b"no object", "cc" * 20: full + bytes(5 << 20)}
    for build_id in ("aa" * 20, "bb" * 20, "cc" * 20, "dd" * 20):
        assert fetcher.find(build_id) is None
        assert fetcher.find(build_id) is None
    until(lambda: fetcher.missing + fetcher.failed == 4, 10.0, "all are asked for")
    assert (fetcher.fetched, fetcher.missing, fetcher.failed) == (0, 1, 3)
    assert debug_server.statuses == [200, 200, 200, 404]
    debug_server.redirect = "http://192.0.2.1/"
    assert fetcher.find("ee" * 20) is None
    until(lambda: fetcher.failed == 4, 10.0, "the redirect is refused")
    assert fetcher.find("../../etc/passwd") is None


def test_fetched_files_are_bounded(
    cpp: Path, tmp_path: Path, debug_server: DebugServer, fetcher: Debuginfod, until: Callable[..., Any]
) -> None:
    """What was fetched first makes room for what comes."""
    full = (cpp / "full").read_bytes()
    at = full.index(bytes.fromhex(run("readelf", "-n", cpp / "full").split("Build ID: ")[1].split()[0]))
    for number in range(1, 12):
        build_id = bytes([number] * 20)
        debug_server.files[build_id.hex()] = full[:at] + build_id + full[at + 20 :]
        fetcher.find(build_id.hex())
        until(lambda wanted=number: fetcher.fetched == wanted, 10.0, "the file is fetched")
    held = sorted((tmp_path / "cache").iterdir())
    assert sum(path.stat().st_size for path in held) <= 4 << 20
    assert held[-1].name == f"{'0b' * 20}.debug"
    assert not any(path.name.startswith(("01", ".part")) for path in held)


@pytest.mark.parametrize("url", ["http://debug.example/", "ftp://127.0.0.1/", "file:///tmp", "http://[", ""])
def test_where_debug_files_come_from(tmp_path: Path, url: str) -> None:
    """Plain http leaves the machine never."""
    with pytest.raises(BadOption, match="https"):
        Debuginfod(url, tmp_path / "cache")
