"""Makes a major's table of names from a Postgres source tree: what each number in shared memory means.

    python tests/postgres/tables.py SOURCE_TREE sidecar/quayscope/sidecar/postgres/data/NN.json

SOURCE_TREE is a checkout of a release tag (`REL_13_12`, `REL_18_4`, ...) of github.com/postgres/postgres;
stable branches never renumber, but append: take the newest minor release. Read are the enums of `miscadmin.h`
and `backend_status.h` (13: `pgstat.h`), and per wait class:

- LWLock: `lwlocknames.txt` (17 and later: `lwlocklist.h`), then `BuiltinTrancheIds` with
  `BuiltinTrancheNames`;
- Lock: `LockTagTypeNames` of `lockfuncs.c`;
- the others to 16: the enums of `wait_event.h` (13: `pgstat.h`) with the names in `wait_event.c` (13:
  `pgstat.c`); from 17 on `wait_event_names.txt`, numbered as `generate-wait_event_types.pl` does: sorted by
  name, and after them what stands under `ABI_compatibility`.

Classes whose events an extension names at run time (Extension, InjectionPoint) have no numbers of their own.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

STATES = {
    "STATE_UNDEFINED": "",
    "STATE_STARTING": "starting",
    "STATE_IDLE": "idle",
    "STATE_RUNNING": "active",
    "STATE_IDLEINTRANSACTION": "idle in transaction",
    "STATE_FASTPATH": "fastpath function call",
    "STATE_IDLEINTRANSACTION_ABORTED": "idle in transaction (aborted)",
    "STATE_DISABLED": "disabled",
}
"""As `pg_stat_get_activity` in pgstatfuncs.c writes them."""

CLASSES = {
    "LWLOCK": "LWLock",
    "LOCK": "Lock",
    "BUFFERPIN": "BufferPin",
    "ACTIVITY": "Activity",
    "CLIENT": "Client",
    "EXTENSION": "Extension",
    "IPC": "IPC",
    "TIMEOUT": "Timeout",
    "IO": "IO",
    "INJECTIONPOINT": "InjectionPoint",
}
"""As `pgstat_get_wait_event_type` writes them."""
APPENDED = {"15": {"IPC": ["WalReceiverUpstreamCatchup"]}, "18": {"IPC": ["WalReceiverUpstreamCatchup"]}}
"""What later minor releases than the trees at hand appended: seen in 15.20 and in 18.6."""
_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)


class Tree:
    """Files of a source tree; the first of several names that exists is read, without its comments."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def read(self, *names: str) -> str:
        for name in names:
            path = self.root / name
            if path.exists():
                return _COMMENT.sub("", path.read_text(encoding="utf-8"))
        raise SystemExit(
            f"{self.root} has none of {', '.join(names)}: not a source tree of Postgres 13 to 18"
        )


def enum(text: str, first: str) -> list[str]:
    """Return the members of the enum that has `first` as its first member, in order."""
    match = re.search(rf"enum[^{{;]*\{{\s*({first}\b[^}}]*)\}}", text)
    if match is None:
        raise SystemExit(f"no enum begins with {first}")
    return [member.split("=")[0].strip() for member in match.group(1).split(",") if member.strip()]


def strings(text: str, array: str) -> list[str]:
    """Return the strings of an array of them."""
    match = re.search(rf"{array}\[\]\s*=\s*\{{(.*?)\}};", text, re.DOTALL)
    if match is None:
        raise SystemExit(f"no array {array}")
    return re.findall(r'"([^"]+)"', match.group(1))


def cases(text: str, variable: str) -> dict[str, str]:
    """Return what a switch assigns to `variable`, by the label before it."""
    pattern = rf'case (\w+):\s*{variable} = (?:gettext_noop\()?"([^"]+)"'
    return dict(re.findall(pattern, text))


def light_locks(tree: Tree) -> list[str | None]:
    """Return the names of LWLocks by number, None where a number is free."""
    listed = tree.read("src/include/storage/lwlocklist.h", "src/backend/storage/lmgr/lwlocknames.txt")
    found = re.findall(r"^PG_LWLOCK\((\d+), (\w+)\)", listed, re.MULTILINE)
    if not found:
        found = [(n, name) for name, n in re.findall(r"^(\w+)Lock\s+(\d+)$", listed, re.MULTILINE)]
    single = {int(number): name for number, name in found}
    tranches = enum(tree.read("src/include/storage/lwlock.h"), "LWTRANCHE_XACT_BUFFER")
    source = tree.read("src/backend/storage/lmgr/lwlock.c")
    if tranches.pop() != "LWTRANCHE_FIRST_USER_DEFINED":
        raise SystemExit("the tranches end otherwise")
    # Up to 16 the names stand in the enum's order, later each beside its member.
    by_member = dict(re.findall(r'\[(LWTRANCHE_\w+)\] = "([^"]+)"', source))
    names = strings(source, "BuiltinTrancheNames") if not by_member else [by_member[t] for t in tranches]
    if len(names) != len(tranches):
        raise SystemExit("the tranches and their names are not of one length")
    return [single.get(number) for number in range(max(single) + 1)] + names


def waits_to_16(tree: Tree) -> dict[str, list[str]]:
    """Return the names of the classes whose events are enums, of a tree that writes them by hand."""
    header = tree.read("src/include/utils/wait_event.h", "src/include/pgstat.h")
    source = tree.read("src/backend/utils/activity/wait_event.c", "src/backend/postmaster/pgstat.c")
    names = cases(source, "event_name")
    found = {}
    for first, kind in re.findall(r"(WAIT_EVENT_\w+) = PG_WAIT_(\w+)", header):
        found[CLASSES[kind.replace("_", "")]] = [names[member] for member in enum(header, first)]
    return {**found, "BufferPin": ["BufferPin"]}


def waits_from_17(tree: Tree) -> dict[str, list[str]]:
    """Return the same of a tree that generates them."""
    found: dict[str, list[str]] = {}
    late: dict[str, list[str]] = {}
    kind, into = "", found
    for line in tree.read("src/backend/utils/activity/wait_event_names.txt").splitlines():
        if line.startswith("Section: ClassName - WaitEvent"):
            kind, into = CLASSES[line.rpartition("WaitEvent")[2].upper()], found
        elif line.startswith("ABI_compatibility:"):
            into = late
        elif kind not in ("LWLock", "Lock", "Extension", "InjectionPoint") and "\t" in line:
            into.setdefault(kind, []).append(line.split("\t")[0])
    return {
        name: [
            "".join(part[0] + part[1:].lower() for part in event.split("_"))
            for event in (*sorted(events, key=str.upper), *late.get(name, ()))
        ]
        for name, events in found.items()
    }


def table(root: Path) -> dict[str, object]:
    """Return a major's table."""
    tree = Tree(root)
    release = re.search(r"AC_INIT\(\[PostgreSQL\], \[([\d.]+)\]", tree.read("configure.ac", "configure.in"))
    if release is None:
        raise SystemExit(f"{root} is not a released Postgres")
    status = tree.read("src/include/utils/backend_status.h", "src/include/pgstat.h")
    described = cases(tree.read("src/backend/utils/init/miscinit.c"), "backendDesc")
    kinds = enum(tree.read("src/include/miscadmin.h"), "B_INVALID")
    generated = (root / "src/backend/utils/activity/wait_event_names.txt").exists()
    classes = re.findall(
        r"#define PG_WAIT_(\w+)\s+0x([0-9A-F]{2})000000U",
        tree.read(
            "src/include/utils/wait_classes.h", "src/include/utils/wait_event.h", "src/include/pgstat.h"
        ),
    )
    waits: dict[str, list[str] | list[str | None]] = {
        "LWLock": light_locks(tree),
        "Lock": list(strings(tree.read("src/backend/utils/adt/lockfuncs.c"), "LockTagTypeNames")),
        **(waits_from_17(tree) if generated else waits_to_16(tree)),
    }
    for name, events in APPENDED.get(release.group(1).partition(".")[0], {}).items():
        waits[name] = [*waits[name], *(event for event in events if event not in waits[name])]
    return {
        "source": f"PostgreSQL {release.group(1)}",
        "states": [STATES[member] for member in enum(status, "STATE_UNDEFINED")],
        "backend_types": [described.get(kind, "") if kind != "B_INVALID" else "" for kind in kinds],
        "classes": {number: CLASSES[name.replace("_", "")] for name, number in classes},
        "waits": waits,
    }


def main() -> None:
    """Write the table of the tree that the command line names."""
    source, out = (Path(argument) for argument in sys.argv[1:])
    out.write_text(json.dumps(table(source), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
