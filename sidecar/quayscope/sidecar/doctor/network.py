"""The queues of listening sockets, asked of the kernel in the process's network namespace.

sock_diag(7); struct unix_diag_req of include/uapi/linux/unix_diag.h.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import threading
from pathlib import Path

from quayscope.sidecar.doctor.attempts import Attempt, Remedy, refused, worked
from quayscope.sidecar.doctor.standing import Standing, filtered
from quayscope.sidecar.doctor.subjects import Subject

__all__ = ["SOCKET_QUEUES", "try_socket_queues"]

SOCKET_QUEUES = "socket_queues"

_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY = 4, 20
_NLM_F_REQUEST, _NLM_F_DUMP, _NLMSG_ERROR = 1, 0x300, 2
_HEADER = struct.Struct("=IHHII")
_UNIX_REQUEST = struct.Struct("=BBHIII8s")
_ALL_STATES, _SHOW_QUEUES = 0xFFFFFFFF, 0x10
_CLONE_NEWNET = 0x40000000
_PATIENCE_S = 2.0

_libc = ctypes.CDLL(None, use_errno=True)


def try_socket_queues(subject: Subject, standing: Standing) -> Attempt:
    """Ask for the queues of Unix sockets where the process lives, entering its namespace if need be."""
    call = "sock_diag(AF_UNIX)"
    if _shares_our_network(subject.pid):
        try:
            _ask()
        except OSError as error:
            why = "the kernel was built without CONFIG_UNIX_DIAG, or a seccomp filter refuses netlink sockets"
            return refused(SOCKET_QUEUES, call, error, Remedy(why), subject.pid)
        return worked(SOCKET_QUEUES, call, "answered; the process shares our network namespace", subject.pid)
    return _elsewhere(subject, standing)


def _shares_our_network(pid: int) -> bool:
    """See whether its namespace shows a socket of ours: that needs no permission, unlike comparing links."""
    name = f"quayscope-doctor-{os.getpid()}-{os.urandom(6).hex()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ours:
        ours.bind(f"\0{name}")
        try:
            return name in Path(f"/proc/{pid}/net/unix").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return False


def _elsewhere(subject: Subject, standing: Standing) -> Attempt:
    path = f"/proc/{subject.pid}/ns/net"
    outcome: list[OSError] = []

    def enter_and_ask() -> None:
        try:
            namespace = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if _libc.setns(namespace, _CLONE_NEWNET) < 0:
                    number = ctypes.get_errno()
                    raise OSError(number, os.strerror(number))
            finally:
                os.close(namespace)
            _ask()
        except OSError as error:
            outcome.append(error)

    # A thread enters for itself alone, and ends there.
    thread = threading.Thread(target=enter_and_ask, name="setns", daemon=True)
    thread.start()
    thread.join(2 * _PATIENCE_S)
    call = f"setns({path})"
    if thread.is_alive():
        return Attempt(SOCKET_QUEUES, False, subject.pid, call, "no answer")
    if not outcome:
        return worked(SOCKET_QUEUES, call, "entered, and sock_diag answered", subject.pid)
    why = (
        "the process lives in another network namespace than the sidecar; containers of one pod share theirs"
    )
    if answer := filtered("setns"):
        why += f"; and a seccomp filter answers {answer} to setns"
    return refused(
        SOCKET_QUEUES, call, outcome[0], standing.needs("SYS_ADMIN", "SYS_PTRACE", why=why), subject.pid
    )


def _ask() -> None:
    """Send one question and take the first answer; raises OSError with what the kernel answered."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as link:
        link.settimeout(_PATIENCE_S)
        request = _UNIX_REQUEST.pack(socket.AF_UNIX, 0, 0, _ALL_STATES, 0, _SHOW_QUEUES, b"\xff" * 8)
        size = _HEADER.size + len(request)
        link.send(
            _HEADER.pack(size, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST | _NLM_F_DUMP, 1, 0) + request,
        )
        answer = link.recv(65_536)
    _, kind, _, _, _ = _HEADER.unpack_from(answer)
    if kind == _NLMSG_ERROR:
        number = -int.from_bytes(answer[_HEADER.size : _HEADER.size + 4], "little", signed=True)
        raise OSError(number, os.strerror(number))
