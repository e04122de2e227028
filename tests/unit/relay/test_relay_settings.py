"""The helper's variables: what they say, and what is said of those that make no sense."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from quayscope.agent import settings as agent_settings
from quayscope.relay import settings
from quayscope.relay.destination import COLLECTOR, PYROSCOPE, Destination

URL = {"QUAYSCOPE_COLLECTOR": "https://collector:4040"}


def test_every_variable_is_read() -> None:
    """Each ends up where it belongs; files and the socket become absolute."""
    found = settings.read(
        {
            "QUAYSCOPE_PYROSCOPE": "https://pyroscope:4040",
            "QUAYSCOPE_TOKEN_FILE": "token",
            "QUAYSCOPE_TENANT": "team",
            "QUAYSCOPE_CA_FILE": "/etc/ca.pem",
            "QUAYSCOPE_CERT_FILE": "/etc/cert.pem",
            "QUAYSCOPE_KEY_FILE": "/etc/key.pem",
            "QUAYSCOPE_INSECURE": "On",
            "QUAYSCOPE_LABELS": "namespace=quay, pod=a=b,,zone=",
            "QUAYSCOPE_SOCKET": "agent.sock",
        }
    )
    assert found.destination == Destination(
        "https://pyroscope:4040",
        PYROSCOPE,
        token_file=Path.cwd() / "token",
        tenant="team",
        ca_file=Path("/etc/ca.pem"),
        cert_file=Path("/etc/cert.pem"),
        key_file=Path("/etc/key.pem"),
        insecure=True,
    )
    assert found.labels == {"namespace": "quay", "pod": "a=b", "zone": ""}
    assert found.socket == str(Path.cwd() / "agent.sock")
    assert found.problems == ()


def test_little_is_needed() -> None:
    """An address alone will do; the socket's default is the agent's."""
    found = settings.read(URL)
    assert found.destination == Destination("https://collector:4040", COLLECTOR)
    assert (found.labels, found.problems) == ({}, ())
    assert found.socket == agent_settings.DEFAULT_SOCKET


def test_links_are_kept(tmp_path: Path) -> None:
    """A mounted secret is a link that moves when it is rotated: it must be followed anew each time."""
    (tmp_path / "now").write_text("x")
    (tmp_path / "token").symlink_to(tmp_path / "now")
    found = settings.read({**URL, "QUAYSCOPE_TOKEN_FILE": str(tmp_path / "token")})
    assert found.destination is not None
    assert found.destination.token_file == tmp_path / "token"


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, "neither QUAYSCOPE_COLLECTOR nor QUAYSCOPE_PYROSCOPE"),
        ({**URL, "QUAYSCOPE_PYROSCOPE": "https://x"}, "the collector is sent to"),
        ({**URL, "QUAYSCOPE_TOKEN_FILE": "a", "QUAYSCOPE_BASIC_AUTH_FILE": "b"}, "the token is sent"),
        ({**URL, "QUAYSCOPE_INSECURE": "perhaps"}, "QUAYSCOPE_INSECURE is neither on nor off"),
        ({**URL, "QUAYSCOPE_LABELS": "pod"}, "'pod' is no label"),
        ({**URL, "QUAYSCOPE_LABELS": "__name__=x"}, "is no label"),
        ({**URL, "QUAYSCOPE_LABELS": "sampler=x"}, "is no label"),
        ({**URL, "QUAYSCOPE_LABELS": "a b=x"}, "is no label"),
        ({**URL, "QUAYSCOPE_LABELS": f"a={'x' * 600}"}, "is no label"),
        ({**URL, "QUAYSCOPE_LABELS": ",".join(f"l{n}=x" for n in range(17))}, "'l16' is left out"),
    ],
)
def test_what_makes_no_sense_is_said(environment: dict[str, str], said: str) -> None:
    """One problem each, in words that name the variable; the rest is as if it were not set."""
    found = settings.read(environment)
    (problem,) = found.problems
    assert said in problem
    if environment:
        assert found.destination is not None
        assert found.destination.url == URL["QUAYSCOPE_COLLECTOR"]
        assert not found.destination.insecure
        assert set(found.labels) <= {f"l{number}" for number in range(16)}


def test_a_pod_has_its_own_labels(tmp_path: Path) -> None:
    """In Kubernetes the pod's name and namespace; what is set wins; without a token there is a name alone."""
    namespace = tmp_path / "namespace"
    namespace.write_text("quay-prod\n")
    pod = {**URL, "KUBERNETES_SERVICE_HOST": "10.0.0.1"}
    name = os.uname().nodename
    assert settings.read(pod, namespace).labels == {"namespace": "quay-prod", "pod": name}
    own = settings.read({**pod, "QUAYSCOPE_LABELS": "pod=mine,zone=a"}, namespace).labels
    assert own == {"namespace": "quay-prod", "pod": "mine", "zone": "a"}
    assert settings.read(pod, tmp_path / "none").labels == {"pod": name}
    assert settings.read(URL, namespace).labels == {}


@pytest.mark.parametrize("field", [name for name in Destination._fields if name != "kind"])
def test_every_field_has_a_variable_and_a_next_step(field: str) -> None:
    """Whatever a destination is blamed for, the log names the variable to change."""
    assert settings.variable(field) in settings.next_step(field)
    assert settings.variable(field) in {getattr(settings, name) for name in settings.__all__}
    assert settings.variable("url", PYROSCOPE) == "QUAYSCOPE_PYROSCOPE"


def test_each_variable_is_documented(checkout: Path) -> None:
    """The table for users names every one."""
    text = (checkout / "docs" / "helper.md").read_text()
    names = {getattr(settings, name) for name in settings.__all__ if name.isupper()}
    assert {name for name in names if f"`{name}`" not in text} == set()
