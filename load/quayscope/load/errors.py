"""What can go wrong in the load driver.

::

    quayscope.profile.Failure
    └── LoadError                 this package
        ├── MalformedWorkload     a workload file says something it may not; names file, line and field
        ├── UnknownWorkload       no workload of that name or path
        ├── TargetUnreachable     nothing answers at the target
        ├── SetupFailed           a request of the workload's setup was not answered as asserted
        ├── ThresholdsMissed      the run is done, but what it measured failed its thresholds
        └── DemoError             (quayscope.load.demo.errors)
"""

from __future__ import annotations

from quayscope.profile import Failure

__all__ = [
    "LoadError",
    "MalformedWorkload",
    "SetupFailed",
    "TargetUnreachable",
    "ThresholdsMissed",
    "UnknownWorkload",
]


class LoadError(Failure):
    """Root of what `quayscope.load` raises."""


class MalformedWorkload(LoadError):
    """A workload file says something it may not; the text names file, line and field."""

    exit_code = 2


class UnknownWorkload(LoadError):
    """No workload of that name is bundled, and no file of that path exists."""

    exit_code = 2


class TargetUnreachable(LoadError):
    """Nothing answers at the target, so there is nothing to measure."""


class SetupFailed(LoadError):
    """A request of the workload's setup was not answered with a status it asserts."""


class ThresholdsMissed(LoadError):
    """The run is done and reported, but too many assertions failed, or a figure in it is not valid."""

    exit_code = 1
