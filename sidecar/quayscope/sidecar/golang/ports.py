"""The TCP ports that a process listens on and that we can reach.

Source of the format: proc(5), /proc/net/tcp: addresses in hexadecimal, in the machine's byte order a 32-bit
word; state 0A is LISTEN. A socket is the process's when one of its descriptors is a link `socket:[INODE]`.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["listening_ports"]

CLAIR_INTROSPECTION = 8089
"""Where Clair's introspection listens by default (`introspection_addr`)."""
_LISTEN = "0A"
_MAX_DESCRIPTORS = 8192
_MAX_LINES = 65_536
_ANY = {"00000000", "0" * 32}
_LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}
_SIX_ALONE = {"00000000000000000000000001000000"}


def listening_ports(pid: int) -> list[tuple[str, int]]:
    """Return (host to connect to, port) of what a process listens on at loopback or any address.

    Clair's default port comes first. Empty when it is in another network namespace, or its descriptors may
    not be read: nobody else's port is taken for its own.
    """
    try:
        if Path(f"/proc/{pid}/ns/net").stat().st_ino != Path("/proc/self/ns/net").stat().st_ino:
            return []
        own = set(_socket_inodes(pid))
    except OSError:
        return []
    found = set()
    for table in ("tcp", "tcp6"):
        for address, port, inode in _listeners(pid, table):
            if inode in own and address in _ANY | _LOOPBACK:
                found.add(("::1" if address in _SIX_ALONE else "127.0.0.1", port))
    return sorted(found, key=lambda entry: (entry[1] != CLAIR_INTROSPECTION, entry[1], entry[0]))


def _socket_inodes(pid: int) -> Iterator[str]:
    folder = f"/proc/{pid}/fd"
    with os.scandir(folder) as entries:
        names = [entry.name for entry in itertools.islice(entries, _MAX_DESCRIPTORS)]
    for name in names:
        try:
            link = str(Path(folder, name).readlink())
        except OSError:
            continue
        if link.startswith("socket:["):
            yield link[8:-1]


def _listeners(pid: int, table: str) -> Iterator[tuple[str, int, str]]:
    try:
        with Path(f"/proc/{pid}/net/{table}").open(encoding="ascii", errors="replace") as file:
            for line in itertools.islice(file, 1, _MAX_LINES):
                fields = line.split()
                if len(fields) > 9 and fields[3] == _LISTEN:
                    address, _, port = fields[1].partition(":")
                    yield address, int(port, 16), fields[9]
    except (OSError, ValueError):
        return
