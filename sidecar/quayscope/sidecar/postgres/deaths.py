"""Processes that ended: a backend that is killed leaves its slot in shared memory as it was."""

from __future__ import annotations

import os
import select

__all__ = ["Deaths"]

_MAX_WATCHED = 4096


class Deaths:
    """Says which slots' processes ended (pidfd_open(2)).

    One descriptor a backend, at most 4,096; where descriptors are short, backends go unwatched.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self.poll = self._epoll.poll
        """epoll_wait(2) itself, with a timeout and a limit: says something where `take` does."""
        self._number_of: dict[int, int] = {}
        self._descriptor_of: dict[int, int] = {}

    def watch(self, number: int, pid: int) -> bool:
        """Watch a slot's process; False when it has ended already."""
        self.forget(number)
        if len(self._number_of) >= _MAX_WATCHED:
            return True
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            return False
        except OSError:
            return True
        self._number_of[descriptor] = number
        self._descriptor_of[number] = descriptor
        self._epoll.register(descriptor, select.EPOLLIN)
        return True

    def watches(self, number: int) -> bool:
        """Whether a slot's process is watched."""
        return number in self._descriptor_of

    def take(self) -> list[int]:
        """Return the slots whose processes ended since they were watched."""
        return [
            number
            for descriptor, _ in self.poll(0, _MAX_WATCHED)
            if (number := self._number_of.get(descriptor)) is not None
        ]

    def forget(self, number: int) -> None:
        """Stop watching a slot's process."""
        descriptor = self._descriptor_of.pop(number, None)
        if descriptor is not None:
            del self._number_of[descriptor]
            os.close(descriptor)

    def close(self) -> None:
        """Stop watching."""
        for number in list(self._descriptor_of):
            self.forget(number)
        self._epoll.close()
