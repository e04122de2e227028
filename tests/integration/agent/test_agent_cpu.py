"""CPU: on the right endpoint, and as much as the kernel says."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from integration.agent.serving import Gunicorn, Kept, at_once, process_cpu_ns
from quayscope.relay import Relay

Serve = Callable[..., Gunicorn]

HEAVY, LIGHT = "GET /heavy/<name>", "GET /light/<name>"


def fire(gunicorn: Gunicorn) -> None:
    """Ask for both endpoints at the same time, so that their greenlets take turns."""
    at_once(
        lambda: gunicorn.get_often("/heavy/a", 40),
        lambda: gunicorn.get_often("/heavy/b", 40),
        lambda: gunicorn.get_often("/light/a", 100),
        lambda: gunicorn.get_often("/light/b", 100),
    )


@pytest.mark.parametrize("preload", [True, False], ids=["preload", "plain"])
def test_cpu_is_on_the_right_endpoint(serve: Serve, relay: Relay, kept: Kept, preload: bool) -> None:
    """Greenlets that take turns: 95 % of the CPU on the endpoint that used it, 90 % of the worker's seen."""
    gunicorn = serve(*(["--preload"] if preload else []))
    (pid,) = gunicorn.workers()
    kernel = process_cpu_ns(pid)
    before = gunicorn.json("/account")["account"]
    fire(gunicorn)
    after = gunicorn.json("/account")["account"]
    kernel = process_cpu_ns(pid) - kernel
    assert gunicorn.stop() == 0
    relay.close(5.0)
    profiled = kept.cpu(pid)
    print(kernel, after, profiled, kept.counts())
    for endpoint in (HEAVY, LIGHT):
        true = after[endpoint] - before.get(endpoint, 0)
        # The framework's own work for a request belongs to it too: about 1 ms each.
        assert true * 0.95 < profiled[endpoint] < true * 1.05 + requests_ns(endpoint)
    # The worker's start and end are profiled too.
    assert kernel * 0.9 < sum(profiled.values()) < kernel * 1.1 + 400e6
    assert kept.counts().get("faults", 0) == 0


def requests_ns(endpoint: str) -> float:
    return 80 * 1.5e6 if endpoint == HEAVY else 200 * 1.5e6
