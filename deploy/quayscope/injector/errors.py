"""What the injector raises, as one tree.

::

    quayscope.profile.Failure
    └── InjectorError           this package
        ├── BadSetting          a flag that cannot be honoured (exit code 2)
        ├── CannotServe         the address or the certificate cannot be used
        └── MalformedReview     a body that is no AdmissionReview of a pod, or no pod at all

A pod that is left alone is no error: it is a `pods.LeftAlone` with its reason.
"""

from __future__ import annotations

from quayscope.profile import Failure

__all__ = ["BadSetting", "CannotServe", "InjectorError", "MalformedReview"]


class InjectorError(Failure):
    """Root of what the injector raises."""


class BadSetting(InjectorError):
    """A flag that cannot be honoured."""

    exit_code = 2


class CannotServe(InjectorError):
    """The address cannot be listened on, or the certificate not be used."""


class MalformedReview(InjectorError):
    """Bytes that are no AdmissionReview of a pod; the text says what is wrong."""
