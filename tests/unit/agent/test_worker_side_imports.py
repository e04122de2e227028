"""What runs in a worker needs the standard library alone, on every interpreter that may be there."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import quayscope.agent
from interpreters import VERSIONS, find

ROOT = Path(quayscope.agent.__path__[0]).parents[1]
NEEDS_CLICK = {"quayscope.agent.commands"}
NAMES = sorted(
    ".".join(source.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for part in ("profile", "agent", "relay")
    for source in (ROOT / "quayscope" / part).rglob("*.py")
    if source.parent.name != "inject"
)


@pytest.mark.parametrize("version", VERSIONS)
def test_imports_with_the_standard_library_alone(version: str) -> None:
    """Each module of profile, agent and relay imports with nothing but the agent's root on the path."""
    wanted = [name for name in NAMES if name not in NEEDS_CLICK]
    assert "quayscope.relay.relay" in wanted
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import importlib\n"
        f"for name in {wanted!r}: importlib.import_module(name)\n"
        "print(sorted({n.partition('.')[0] for n in sys.modules}"
        " & {'click', 'opentelemetry', 'psycopg2', 'flask', 'gevent', 'gunicorn', 'greenlet'}))"
    )
    done = subprocess.run([find(version), "-S", "-E", "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n", done.stderr
