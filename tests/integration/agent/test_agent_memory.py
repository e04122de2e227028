"""Memory profiles by pyroscope-io: ours where there is no other session, the application's left alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from integration.agent.push_receiver import PushReceiver
from integration.agent.serving import Gunicorn, Kept, until
from quayscope.relay import Relay

Serve = Callable[..., Gunicorn]


@pytest.mark.parametrize(
    ("session", "counter", "ours"),
    [
        ("master", "pyroscope_in_the_master", True),
        ("worker", "pyroscope_of_the_application", False),
    ],
)
def test_one_session_sends_memory(
    serve: Serve, relay: Relay, kept: Kept, session: str, counter: str, ours: bool
) -> None:
    """Memory alone is sent, once, and not where the application has a session: whose it is, is said once."""
    with PushReceiver() as receiver:
        gunicorn = serve(
            "--preload",
            "--config=python:integration.agent.own_pyroscope",
            environment={"QUAYSCOPE_MEMORY": receiver.address, "AGENT_TEST_SESSION": session},
        )
        assert gunicorn.get_often("/light/x", 20) == [200] * 20
        until(lambda: ("quay-app" if ours else "its-own") in services(receiver), "it is pushed", 25.0)
        assert gunicorn.stop() == 0
    relay.close(5.0)
    types = {
        pushed.profile.type.name
        for pushed in receiver.pushed
        if pushed.profile.labels["service_name"] == "quay-app"
    }
    print(session, services(receiver), types, kept.counts())
    assert types == ({"memory"} if ours else set())
    said = {name: count for name, count in kept.counts().items() if name.startswith("pyroscope")}
    assert said == {counter: 1}
    assert kept.counts().get("faults", 0) == 0
    assert kept.cpu()["GET /light/<name>"] > 0


def services(receiver: PushReceiver) -> set[str]:
    return {pushed.profile.labels["service_name"] for pushed in receiver.pushed}
