"""Threads beside the main one: told apart, given the request they work for, and kept from the timer's signal.

The kernel gives a process's timer signal to the thread that used the CPU, if it takes it; Python's handler
then waits until the main thread runs again, which may sleep in `select` all the while (2 of 202 samples
came). So the signal is blocked in every other thread, and wakes the main one. A child that such a thread
forks has it back; a program that is started without a fork of Python's own (`subprocess`) begins with it
blocked, as the kernel has it.

A thread, and a task of a pool, works for the request that started it, until that request has ended.
"""

from __future__ import annotations

import os
import signal
from types import ModuleType
from typing import Any, Callable

from quayscope.agent.account import CpuAccount
from quayscope.agent.context import CURRENT, Request, current
from quayscope.agent.early import get_ident
from quayscope.agent.faults import guarded
from quayscope.agent.hooks import after_import

__all__ = ["follow_threads"]

_STARTED_BY = "_quayscope_request"
_blocked_in: set[int] = set()
"""Threads that we keep the signal from, by `get_ident`."""


def follow_threads(account: CpuAccount) -> None:
    """Follow threads of `threading`, and tasks of gevent's and the standard library's pools."""
    os.register_at_fork(after_in_child=lambda: guarded(_let_through))
    after_import("threading", lambda module: _patch_threading(module, account))
    after_import("gevent.threadpool", lambda module: _patch_gevent(module, account))
    after_import("concurrent.futures.thread", lambda module: _patch_executor(module, account))


def _keep_signal_away() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGPROF,))
    _blocked_in.add(get_ident())


def _let_through() -> None:
    """In a child that this thread has forked: it may have a profiler of its own."""
    if get_ident() in _blocked_in:
        _blocked_in.clear()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGPROF,))


def _patch_threading(module: ModuleType, account: CpuAccount) -> None:
    thread_class: Any = module.Thread
    plain_start, plain_run = thread_class.start, thread_class._bootstrap_inner

    def start(self: Any, *arguments: Any, **named: Any) -> Any:
        if account.running:
            guarded(_note_starter, self)
        return plain_start(self, *arguments, **named)

    def _bootstrap_inner(self: Any, *arguments: Any, **named: Any) -> Any:
        entered = guarded(_enter, account, self.__dict__.get(_STARTED_BY)) if account.running else None
        try:
            return plain_run(self, *arguments, **named)
        finally:
            if entered:
                guarded(_leave, account)

    thread_class.start = start
    thread_class._bootstrap_inner = _bootstrap_inner


def _note_starter(thread: Any) -> None:
    request = current()
    if request is not None:
        thread.__dict__[_STARTED_BY] = request


def _enter(account: CpuAccount, request: Request | None) -> bool:
    """Begin a thread's life; returns whether it is a thread of its own, and no greenlet on the main one."""
    if request is not None:
        CURRENT.set(request)
    if get_ident() == account.main_ident:
        if request is not None:
            account.begin(request)
        return False
    _keep_signal_away()
    account.take_up(request)
    return True


def _leave(account: CpuAccount) -> None:
    _blocked_in.discard(get_ident())
    account.leave()


def _patch_gevent(module: ModuleType, account: CpuAccount) -> None:
    # Its threads are started past `threading`: they are met at their first task.
    pool_class: Any = module.ThreadPool
    plain = pool_class.spawn

    def spawn(self: Any, func: Any, *arguments: Any, **named: Any) -> Any:
        if not account.running:
            return plain(self, func, *arguments, **named)
        return plain(self, guarded(_Task, func, account) or func, *arguments, **named)

    pool_class.spawn = spawn


def _patch_executor(module: ModuleType, account: CpuAccount) -> None:
    executor_class: Any = module.ThreadPoolExecutor
    plain = executor_class.submit

    def submit(self: Any, fn: Any, *arguments: Any, **named: Any) -> Any:
        if account.running:
            fn = guarded(_for_request, fn, account) or fn
        return plain(self, fn, *arguments, **named)

    executor_class.submit = submit


def _for_request(task: Callable[..., Any], account: CpuAccount) -> Callable[..., Any]:
    return task if current() is None else _Task(task, account)


class _Task:
    """A pool's task, and the request that it was given for."""

    def __init__(self, task: Callable[..., Any], account: CpuAccount) -> None:
        self._task = task
        self._account = account
        self._request = current()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def __repr__(self) -> str:
        return repr(self._task)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        before = guarded(self._begin)
        try:
            return self._task(*arguments, **named)
        finally:
            if before is not None:
                guarded(self._end, before[0])

    def _begin(self) -> tuple[Request | None] | None:
        if get_ident() == self._account.main_ident:
            return None
        _keep_signal_away()
        CURRENT.set(self._request)
        return (self._account.take_up(self._request),)

    def _end(self, before: Request | None) -> None:
        CURRENT.set(before)
        self._account.take_up(before)
