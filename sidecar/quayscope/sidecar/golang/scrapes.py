"""Scrapes the profiles of the pod's Go programs, each kind on a schedule, on one thread."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from quayscope.profile import MalformedProfile, Profile, UnknownProfileType
from quayscope.sidecar.capabilities import Capabilities, Capability
from quayscope.sidecar.errors import ScrapeFailed
from quayscope.sidecar.golang.convert import CPU, KINDS, Converter, Kind
from quayscope.sidecar.golang.fetch import Address, Fetcher
from quayscope.sidecar.golang.operations import OperationTable
from quayscope.sidecar.golang.ports import listening_ports

__all__ = ["GoProgram", "GoScrapes"]

log = logging.getLogger(__name__)

EVERY_S = 60.0
CPU_S = 10
"""Each minute, ten seconds of CPU profile: Go samples at 100 Hz by itself, some 1 % of the program's CPU."""
MAX_PROGRAMS = 8
MAX_BYTES = 8 << 20
SLACK_S = 10.0
_LOOK_S = 0.5
_FOLLOW_S = 2.0
_INDEX_BYTES = 256 << 10
_INDEX_S = 2.0
_MARK = b"/debug/pprof/"
_TRIES_S = (0.0, 2.0, 5.0, 15.0, 60.0, 300.0)
"""After which times a program is asked again whether it serves profiles; the last one again and again."""
_CAPABILITY = "go_pprof"
_REMEDY = "serve net/http/pprof on loopback (Clair: introspection_addr), or --go-pprof http://HOST:PORT"


class GoProgram(NamedTuple):
    """A running Go program; pid 0 where only its address is known."""

    pid: int
    start_ticks: int
    labels: Mapping[str, str]


class _Watched:
    """One program: where it answers, and when to ask again."""

    def __init__(self, program: GoProgram, address: Address | None, given: bool) -> None:
        self.program = program
        self.address = address
        self.given = given
        self.converter = Converter(program.labels, program.pid)
        self.plain: set[str] = set()
        self.tries = 0
        self.try_at = 0.0
        self.due = 0.0


class GoScrapes:
    """Keeps a watch over Go programs. `update` says which there are; the rest happens on its own thread.

    `addresses` are asked whoever listens there; `discover`: the ports of the other programs too. At most 8
    programs are scraped, what comes beyond is counted.
    """

    def __init__(
        self,
        addresses: Sequence[Address],
        operations: OperationTable,
        emit: Callable[[list[Profile]], None],
        capabilities: Capabilities,
        *,
        every_s: float = EVERY_S,
        cpu_s: int = CPU_S,
        discover: bool = True,
        fallback: Mapping[str, str] | None = None,
    ) -> None:
        self._operations = operations
        self._emit = emit
        self._capabilities = capabilities
        self._every_s = every_s
        self._cpu_s = cpu_s
        self._given = list(addresses)
        self._discovers = discover
        self._fallback = dict(fallback or {})
        self._programs: Sequence[GoProgram] = ()
        self._watched: dict[tuple[int, int, str], _Watched] = {}
        self._follow_at = 0.0
        self._fetcher = Fetcher()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="go-pprof", daemon=True)
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def update(self, programs: Sequence[GoProgram]) -> None:
        """Say which Go programs run now."""
        self._programs = tuple(programs)

    def address_of(self, pid: int) -> Address | None:
        """Return where a process serves its profiles, None while it is not known. Thread-safe."""
        for watched in list(self._watched.values()):
            if watched.program.pid == pid and watched.address is not None:
                return watched.address
        return None

    def counts(self) -> dict[str, int]:
        """Return what happened so far: scrapes, failures, samples with and without an operation, faults."""
        with self._lock:
            return dict(self._counts)

    def close(self, timeout_s: float = 2.0) -> None:
        """End what is under way."""
        self._stop.set()
        self._fetcher.abort()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def _count(self, name: str, count: int = 1) -> None:
        with self._lock:
            self._counts[name] += count

    def _run(self) -> None:
        while not self._stop.wait(_LOOK_S):
            # The one border of this thread: a program that cannot be read costs the others nothing.
            try:
                self._round()
            except Exception:
                self._count("faults")
                log.exception("scrape fault")

    def _round(self) -> None:
        if time.monotonic() >= self._follow_at:
            self._follow_at = time.monotonic() + _FOLLOW_S
            self._follow()
        for watched in list(self._watched.values()):
            now = time.monotonic()
            if watched.address is None and now >= watched.try_at:
                self._discover(watched, now)
            if watched.address is not None and now >= watched.due:
                # From one due time to the next: a late round does not move those after it.
                late = now - watched.due
                watched.due = now + self._every_s - (late if watched.due and late < self._every_s else 0.0)
                self._scrape(watched, watched.address)
            if self._stop.is_set():
                return

    def _follow(self) -> None:
        """Take up programs that came, forget those that went."""
        wanted: dict[tuple[int, int, str], tuple[GoProgram, Address | None]] = {}
        programs = self._programs
        ports = {}
        if self._given:
            ports = {port: program for program in programs for _, port in listening_ports(program.pid)}
        served = set()
        for address in self._given:
            program = ports.get(address.port) or GoProgram(
                0, 0, {"service_name": f"{address.host}:{address.port}", **self._fallback}
            )
            served.add(program.pid)
            wanted[program.pid, program.start_ticks, str(address)] = (program, address)
        for program in programs if self._discovers else ():
            if program.pid not in served:
                wanted[program.pid, program.start_ticks, ""] = (program, None)
        for key in self._watched.keys() - wanted.keys():
            del self._watched[key]
        for key, (program, known) in wanted.items():
            if key not in self._watched:
                if len(self._watched) >= MAX_PROGRAMS:
                    self._count("programs_passed_over")
                    continue
                self._watched[key] = _Watched(program, known, known is not None)

    def _discover(self, watched: _Watched, now: float) -> None:
        watched.tries += 1
        watched.try_at = now + _TRIES_S[min(watched.tries, len(_TRIES_S) - 1)]
        pid = watched.program.pid
        for host, port in listening_ports(pid):
            address = Address(host, port)
            try:
                index = self._fetcher.get(address, "", timeout_s=_INDEX_S, max_bytes=_INDEX_BYTES)
            except ScrapeFailed:
                continue
            if _MARK in index:
                watched.address = address
                self._capabilities.note(Capability(_CAPABILITY, True, f"process {pid} answers at {address}"))
                return
        if watched.tries > 2 and not self._capabilities.permitted(_CAPABILITY):
            self._capabilities.note(
                Capability(_CAPABILITY, False, f"process {pid} serves no profiles that we can reach", _REMEDY)
            )

    def _scrape(self, watched: _Watched, address: Address) -> None:
        for kind in KINDS:
            if self._stop.is_set():
                return
            self._take(watched, address, kind, SLACK_S)
        if not self._stop.is_set():
            self._take(watched, address, CPU, self._cpu_s + SLACK_S)

    def _take(self, watched: _Watched, address: Address, kind: Kind, timeout_s: float) -> None:
        try:
            body, is_delta = self._fetch(watched, address, kind, timeout_s)
            profile = watched.converter.read(kind, body, is_delta=is_delta)
        except (ScrapeFailed, MalformedProfile, UnknownProfileType) as error:
            if self._stop.is_set():
                return
            self._count("failures")
            log.warning("no profile", extra={"pid": watched.program.pid, "reason": str(error)})
            if watched.given:
                self._capabilities.note(Capability(_CAPABILITY, False, str(error), _REMEDY))
            return
        self._count("scrapes")
        self._count("bytes", len(body))
        if watched.given:
            self._capabilities.note(Capability(_CAPABILITY, True, f"{address} answers"))
        if profile is None:
            return
        profile = self._operations.attribute(profile)
        if kind is CPU:
            samples = profile.totals()[0]
            self._count("cpu_samples", samples)
            self._count("cpu_samples_unattributed", profile.losses.unattributed)
        self._emit([profile])

    def _fetch(self, watched: _Watched, address: Address, kind: Kind, timeout_s: float) -> tuple[bytes, bool]:
        """Return an answer, and whether it is a difference already."""
        if kind.delta and kind.name not in watched.plain:
            try:
                body = self._fetcher.get(address, kind.delta, timeout_s=timeout_s, max_bytes=MAX_BYTES)
            except ScrapeFailed as error:
                if "status 404" not in str(error):
                    raise
                watched.plain.add(kind.name)
            else:
                return body, True
        name = f"{kind.name}?seconds={self._cpu_s}" if kind is CPU else kind.name
        return self._fetcher.get(address, name, timeout_s=timeout_s, max_bytes=MAX_BYTES), False
