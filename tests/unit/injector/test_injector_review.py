"""Reviews: what is answered to good ones and bad ones, and the patch that says it."""

from __future__ import annotations

import base64
import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operator_pods import COMPONENTS, SETTINGS, component_pod
from quayscope.injector.inject import inject
from quayscope.injector.patch import difference
from quayscope.injector.pods import Subject
from quayscope.injector.server import Reviews, create_app
from quayscope.injector.settings import MODES, Settings
from schemas.closed import VERSIONS, errors

SET = Settings(**SETTINGS)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(0, 9) | st.text("ab/~", max_size=3),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text("ab/~", max_size=2), inner, max_size=4)
    ),
    max_leaves=20,
)


def applied(document: Any, operations: list[dict[str, Any]]) -> Any:
    """RFC 6902 as a reader of the standard writes it."""
    whole = {"": copy.deepcopy(document)}
    for operation in operations:
        parts: list[str] = ["", *operation["path"].split("/")[1:]]
        parents, last = parts[:-1], parts[-1]
        holder: Any = whole
        for part in parents:
            key = part.replace("~1", "/").replace("~0", "~")
            holder = holder[int(key)] if isinstance(holder, list) else holder[key]
        key = last.replace("~1", "/").replace("~0", "~")
        if isinstance(holder, list):
            place = int(key)
            assert 0 <= place <= len(holder) - (operation["op"] != "add")
            if operation["op"] == "add":
                holder.insert(place, operation["value"])
            elif operation["op"] == "remove":
                del holder[place]
            else:
                holder[place] = operation["value"]
        elif operation["op"] == "remove":
            del holder[key]
        else:
            assert operation["op"] == "add" or key in holder
            holder[key] = operation["value"]
    return whole[""]


@given(json_values, json_values)
def test_patch_makes_one_of_the_other(before: Any, after: Any) -> None:
    """Whatever two documents differ in, the patch makes the second of the first."""
    patched = applied(before, difference(before, after))
    assert json.dumps(patched, sort_keys=True) == json.dumps(after, sort_keys=True)


names = st.text("abz-", min_size=1, max_size=6).filter(
    lambda name: not name.startswith("-") and not name.endswith("-")
)
variables = st.builds(
    lambda name, value: {"name": name, "value": value},
    st.sampled_from(["A", "PYTHONPATH", "QUAYSCOPE_SOCKET", "B"]),
    st.sampled_from(["", "/x", "/x:/y"]),
)
contexts = st.fixed_dictionaries(
    {},
    optional={"runAsUser": st.integers(1, 9), "runAsGroup": st.integers(1, 9), "runAsNonRoot": st.just(True)},
)
extra_containers = st.lists(
    st.fixed_dictionaries({"name": names, "image": st.just("i")}, optional={"securityContext": contexts}),
    max_size=3,
    unique_by=lambda one: str(one["name"]),
)


@st.composite
def pods(draw: st.DrawFn) -> dict[str, Any]:
    """Pods of any component with other containers, volumes, users, variables and annotations."""
    pod = component_pod(
        draw(st.sampled_from(COMPONENTS)), inject=draw(st.sampled_from(["true", "true", "false"]))
    )
    spec, application = pod["spec"], pod["spec"]["containers"][0]
    spec["containers"] = [*draw(extra_containers), application, *draw(extra_containers)]
    taken = [one["name"] for one in spec["containers"]]
    spec["initContainers"] = [one for one in draw(extra_containers) if one["name"] not in taken]
    spec["containers"] = [one for i, one in enumerate(spec["containers"]) if one["name"] not in taken[:i]]
    if not spec["initContainers"]:
        del spec["initContainers"]
    spec["securityContext"].update(draw(contexts))
    application.setdefault("env", []).extend(
        draw(st.lists(variables, max_size=3, unique_by=lambda one: one["name"]))
    )
    if draw(st.booleans()):
        spec["hostPID"] = draw(st.booleans())
    pod["metadata"]["annotations"].update(
        draw(
            st.dictionaries(st.sampled_from(["quayscope.io/pythonpath", "note"]), st.sampled_from(["", "/p"]))
        )
    )
    return pod


@settings(max_examples=150, deadline=None)
@given(pods(), st.sampled_from(MODES), st.booleans())
def test_any_pod_is_valid_again_and_itself_beside(pod: dict[str, Any], mode: str, native: bool) -> None:
    """The result is valid, the same each time and when injected again; nothing that was there is lost."""
    assert errors(pod, VERSIONS[-1]) == []
    chosen = Settings(**{**SETTINGS, "mode": mode, "native": native})
    made, subject = inject(pod, chosen, namespace="quay")
    assert errors(made, VERSIONS[-1]) == []
    assert inject(pod, chosen, namespace="quay")[0] == made
    assert inject(made, chosen, namespace="quay")[0] == made
    if not isinstance(subject, Subject):
        assert made == pod
        return
    for kind in ("containers", "initContainers", "volumes"):
        kept = [one["name"] for one in made["spec"].get(kind, ()) if not one["name"].startswith("quayscope-")]
        assert kept == [one["name"] for one in pod["spec"].get(kind, ())]
    for before in pod["spec"]["containers"]:
        after = next(one for one in made["spec"]["containers"] if one["name"] == before["name"])
        assert _user(pod, before) == _user(made, after)
        assert before["image"] == after["image"]
    assert applied(pod, difference(pod, made)) == made


def _user(pod: dict[str, Any], container: dict[str, Any]) -> tuple[Any, Any]:
    both = {**pod["spec"]["securityContext"], **container.get("securityContext", {})}
    return both.get("runAsUser"), both.get("runAsGroup")


def review(pod: Any, **changed: Any) -> bytes:
    """An AdmissionReview as an API server sends it."""
    request = {
        "uid": "42",
        "operation": "CREATE",
        "namespace": "quay",
        "object": pod,
        "dryRun": False,
        **changed,
    }
    return json.dumps(
        {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}
    ).encode()


def test_answer_is_a_review_with_a_patch() -> None:
    """The answer is an AdmissionReview that carries the patch; what is left alone has none, and a warning."""
    client = create_app(Reviews(SET)).test_client()
    pod = component_pod("quay-app")
    found = client.post("/inject", data=review(pod)).get_json()
    assert errors(found, VERSIONS[0]) == []
    assert found["response"]["uid"] == "42"
    patched = applied(pod, json.loads(base64.b64decode(found["response"]["patch"])))
    assert patched == inject(pod, SET, namespace="quay")[0]
    pod["spec"]["os"] = {"name": "windows"}
    left = client.post("/inject", data=review(pod)).get_json()["response"]
    assert left["allowed"] is True
    assert "patch" not in left
    assert "Windows" in left["warnings"][0]
    deleted = client.post("/inject", data=review(None, operation="DELETE")).get_json()["response"]
    assert deleted == {"uid": "42", "allowed": True}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"{",
        b"[" * 100_000,
        b'{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}',
        json.dumps({"apiVersion": "v1", "kind": "AdmissionReview", "request": {"uid": "42"}}).encode(),
        review(None),
        review({"apiVersion": "v1", "kind": "Pod"}),
        review({"apiVersion": "v1", "kind": "Pod", "metadata": {}, "spec": {"containers": [3]}}),
        b" " * (9 << 20),
    ],
    ids=range(11),
)
def test_malformed_reviews_deny_nothing(body: bytes) -> None:
    """What is no review of a pod is admitted and counted."""
    reviews = Reviews(SET)
    answer = create_app(reviews).test_client().post("/inject", data=body)
    assert answer.status_code == 200
    assert answer.get_json()["response"]["allowed"] is True
    assert "patch" not in answer.get_json()["response"]
    assert reviews.counts()[0] == {"malformed": 1}


def test_a_fault_admits_and_is_counted() -> None:
    """A pod that our code stumbles over is made as it is, and the fault stands in the metrics."""
    client = create_app(Reviews(SET)).test_client()
    pod = component_pod("quay-app")
    pod["spec"]["containers"][0]["env"] = 3
    answer = client.post("/inject", data=review(pod)).get_json()["response"]
    assert answer == {"uid": "42", "allowed": True}
    assert 'quayscope_injector_reviews_total{outcome="fault"} 1' in client.get("/metrics").text


@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=4),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "metadata",
                        "spec",
                        "labels",
                        "containers",
                        "name",
                        "env",
                        "quayscope.io/inject",
                        "quay-component",
                    ]
                ),
                inner,
            )
        ),
    )
)
def test_any_json_is_admitted(value: Any) -> None:
    """Whatever stands where a pod should: one answer, and it admits."""
    answer = Reviews(SET).take(review(value)).body["response"]
    assert answer["allowed"] is True
