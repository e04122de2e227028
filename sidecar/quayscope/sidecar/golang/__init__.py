"""Go programs by their own profiles: scraped over loopback, each sample with its operation.

In the order of reading: `ports` finds where a program listens; `fetch` gets one answer, bounded; `convert`
makes a profile of it; `operations` says what each sample was for; `scrapes` runs it all on a schedule.
"""

from quayscope.sidecar.golang.fetch import Address, parse_address
from quayscope.sidecar.golang.operations import OperationTable, clair_operations
from quayscope.sidecar.golang.scrapes import GoProgram, GoScrapes

__all__ = ["Address", "GoProgram", "GoScrapes", "OperationTable", "clair_operations", "parse_address"]
