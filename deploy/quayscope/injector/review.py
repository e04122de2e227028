"""AdmissionReview v1, read and answered. Format: admission.k8s.io/v1 of the Kubernetes API."""

from __future__ import annotations

import base64
import json
from typing import Any, NamedTuple

from quayscope.injector.errors import MalformedReview
from quayscope.injector.inject import inject
from quayscope.injector.patch import difference
from quayscope.injector.pods import LeftAlone
from quayscope.injector.settings import Settings

__all__ = ["MAX_BYTES", "Answer", "admitted", "answer", "read_pod", "read_request"]

MAX_BYTES = 8 << 20
"""More than an API server sends: its own limit on an object is 3 MiB, and a review may hold an old one."""
_API, _KIND = "admission.k8s.io/v1", "AdmissionReview"


class Answer(NamedTuple):
    """What is sent back, and what it is counted as."""

    body: dict[str, Any]
    outcome: str


def read_pod(document: object) -> dict[str, Any]:
    """Return `document` as a Pod object; raises `MalformedReview`."""
    if not isinstance(document, dict) or document.get("kind") != "Pod" or document.get("apiVersion") != "v1":
        raise MalformedReview("expected an object of apiVersion v1 and kind Pod")
    metadata = document.get("metadata")
    spec = document.get("spec")
    if not isinstance(metadata, dict) or not isinstance(spec, dict):
        raise MalformedReview("the pod has no metadata or no spec")
    for kind in ("containers", "initContainers", "volumes"):
        ones = spec.get(kind) or []
        if not isinstance(ones, list) or not all(isinstance(one, dict) for one in ones):
            raise MalformedReview(f"{kind} is no list of objects")
    return document


def answer(request: dict[str, Any], settings: Settings) -> Answer:
    """Answer a request with the patch that it asks for, or none; raises `MalformedReview`. Never a denial."""
    uid = str(request["uid"])
    if request.get("operation") != "CREATE" or request.get("subResource"):
        return Answer(admitted(uid), "not-a-creation")
    pod = read_pod(request.get("object"))
    wanted, subject = inject(pod, settings, namespace=str(request.get("namespace") or ""))
    if isinstance(subject, LeftAlone):
        return Answer(admitted(uid, warning=subject.warning), subject.outcome)
    patch = json.dumps(difference(pod, wanted), separators=(",", ":")).encode()
    reviewed = admitted(uid)
    reviewed["response"].update(patchType="JSONPatch", patch=base64.b64encode(patch).decode())
    return Answer(reviewed, "injected")


def admitted(uid: str, *, warning: str = "") -> dict[str, Any]:
    """Return the answer that changes nothing."""
    response: dict[str, Any] = {"uid": uid, "allowed": True}
    if warning:
        # The API server cuts a warning at 256 characters, and says so itself.
        response["warnings"] = [f"quayscope leaves this pod alone: {warning}"[:256]]
    return {"apiVersion": _API, "kind": _KIND, "response": response}


def read_request(body: bytes) -> dict[str, Any]:
    """Return a review's `request`, which has a `uid`; raises `MalformedReview`."""
    try:
        review = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise MalformedReview(f"the body is no JSON: {error}") from error
    if not isinstance(review, dict):
        raise MalformedReview("the body is no object")
    request = review.get("request")
    uid = request.get("uid") if isinstance(request, dict) else None
    if not isinstance(request, dict) or not isinstance(uid, str) or not uid:
        raise MalformedReview("the review has no request with a uid")
    if review.get("apiVersion") != _API or review.get("kind") != _KIND:
        raise MalformedReview(f"expected {_KIND} of {_API}")
    return request
