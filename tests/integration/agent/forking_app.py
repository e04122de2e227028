"""The same application in a process that forks helpers: one at import, others while a request runs."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time

from flask import Response, jsonify

from integration.agent.agent_app import app

__all__ = ["app"]

HELPER_MS = 100
"""CPU that each helper uses: it would show under its worker's pid, or as a pid of its own."""


def spin(milliseconds: int) -> int:
    """Use this much of the thread's CPU; return what it was in nanoseconds."""
    began = time.thread_time_ns()
    while time.thread_time_ns() - began < milliseconds * 1_000_000:
        sum(range(200))
    return time.thread_time_ns() - began


def fork() -> tuple[int, int]:
    """Fork a helper and wait for it; return its pid and exit code."""
    pid = os.fork()
    if pid == 0:
        try:
            spin(HELPER_MS)
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    return pid, os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status)


def by_multiprocessing() -> tuple[int, int]:
    """Have a helper forked by the standard library."""
    process = multiprocessing.get_context("fork").Process(target=spin, args=(HELPER_MS,))
    process.start()
    process.join()
    return process.pid or 0, -1 if process.exitcode is None else process.exitcode


def by_subprocess() -> tuple[int, int]:
    """Run a helper that is a Python program of its own."""
    code = f"import time\nwhile time.process_time() < {HELPER_MS / 1000}: sum(range(200))"
    process = subprocess.Popen([sys.executable, "-c", code])
    return process.pid, process.wait()


assert fork()[1] == 0


@app.get("/burn/<int:milliseconds>")
def burn(milliseconds: int) -> Response:
    return jsonify(pid=os.getpid(), cpu=spin(milliseconds))


@app.get("/child")
def child() -> Response:
    """Return what a child program that needs the application's packages sees."""
    code = (
        "import flask, json, os, sitecustomize, sys;"
        "print(json.dumps([sitecustomize.__file__, os.environ['PYTHONPATH'], sys.path]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return jsonify(json.loads(done.stdout) if done.returncode == 0 else done.stderr)


@app.get("/helper/<how>")
def helper(how: str) -> Response:
    ways = {"fork": fork, "multiprocessing": by_multiprocessing, "subprocess": by_subprocess}
    pid, code = ways[how]()
    return jsonify(pid=os.getpid(), helper=pid, code=code)
