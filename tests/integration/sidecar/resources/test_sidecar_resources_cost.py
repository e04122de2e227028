"""What a second of resources costs the sidecar."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys

import pytest

from own_cgroup import own_cgroup

PROCESSES = 200
_POD = """
import json, os, sys, time
from quayscope.sidecar.capabilities import Capabilities
from quayscope.sidecar.measurements import Meter
from quayscope.sidecar.resources import Container, Processes, Resources, TierCpu

count, rounds = map(int, sys.argv[1:])
first = os.fork()
if not first:
    for _ in range(count - 1):
        if not os.fork():
            break
    while True:  # each runs a little within every second
        time.sleep(0.1)
sent = []
processes = Processes()
meter = Meter({"service_name": "quayscope-sidecar"}, sent.append)
tiers = TierCpu(processes)
resources = Resources({}, processes, sent.append, Capabilities())
costs, plain, ran = [], [], []
for _ in range(rounds + 2):
    time.sleep(0.3)
    began = time.thread_time()
    processes.look()
    meter.emit(tiers.readings(None, first))
    resources.tick([Container({"service_name": "quay-app"}, first)])
    costs.append((time.thread_time() - began) * 1e3)
    time.sleep(0.3)
    began = time.thread_time()
    for process in processes.tree(first):
        for name in ("stat", "io", "schedstat"):
            with open(f"/proc/{process.pid}/{name}") as file:
                file.read()
    plain.append((time.thread_time() - began) * 1e3)
    ran.append(sum(process.ran for process in processes.tree(first)))
print(json.dumps({"costs": costs, "plain": plain, "ran": ran, "bytes": sum(map(len, sent)) / len(ran)}))
"""


@pytest.mark.alone
def test_a_second_of_a_pod_with_200_processes_takes_at_most_5_ms(full: bool) -> None:
    """CPU of the whole tick where all processes ran since the one before it; the pod sees only itself."""
    with own_cgroup() as cgroup:
        pod = [sys.executable, "-c", _POD, str(PROCESSES), str(30 if full else 8)]
        # Its processes end with the namespace, which ends with the first process in it.
        command = cgroup.entering("unshare", "--pid", "--fork", "--mount-proc", *pod)
        answer = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=60).stdout
    seen = json.loads(answer)
    costs, ran = seen["costs"][2:], seen["ran"][2:]
    print(f"a tick: {statistics.median(costs):.2f} ms of CPU, {min(costs):.2f} to {max(costs):.2f}")
    plain = statistics.median(seen["plain"][2:])
    print(f"reading stat, io and schedstat of each, and no more: {plain:.2f} ms")
    print(f"the first: {seen['costs'][0]:.2f} ms; {seen['bytes']:.0f} bytes sent a second")
    assert min(ran) >= 0.95 * PROCESSES
    # On a machine that others slow down, less than opening and reading three files of each costs beside it.
    # Of six ticks the least is what it costs, the others what else ran meanwhile.
    cost = statistics.median(costs) if full else min(costs)
    assert cost <= max(5.0, (0.9 if full else 1.2) * plain)
