"""Sockets in the network namespace of a pod, served from here."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from typing import TypeVar

__all__ = ["in_network_of"]

_CLONE_NEWNET = 0x40000000
Made = TypeVar("Made")


def in_network_of(pid: int, make: Callable[[], Made]) -> Made:
    """Return what `make` returns when called in the network namespace of a process.

    Sockets that it makes stay there. It runs in a thread of its own, which alone enters and then ends.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    made: list[Made] = []
    failed: list[Exception] = []

    def enter() -> None:
        try:
            namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
            try:
                if libc.setns(namespace, _CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), "setns")
            finally:
                os.close(namespace)
            made.append(make())
        except Exception as error:  # noqa: BLE001 - raised again by the caller below
            failed.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return made[0]
