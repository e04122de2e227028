"""What was acknowledged is on disk, whatever happens to the process, the disk, or a client."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from pathlib import Path

from integration.collector.running_collector import RunningCollector, cpu_profile, wait_for
from quayscope.profile import PushFailed
from quayscope.profile.push import PushClient, encode_push, series_of

CPU = "process_cpu"


def total(collector: RunningCollector) -> int:
    """All CPU in the store."""
    return int(collector.get("flamegraph", type=CPU)["total"])


def test_a_restart_keeps_everything(fresh: RunningCollector) -> None:
    """After SIGTERM (exit 0) and a new start every answer is the same, and IDs are still known."""
    for number in range(3):
        fresh.push(cpu_profile(number), f"id-{number}")
    questions = [
        ("flamegraph", {"type": CPU}),
        ("top", {"type": CPU}),
        ("breakdown", {"type": CPU, "by": "endpoint,sql,wait,trace_id"}),
        ("series", {}),
        ("labels", {}),
    ]
    now = time.time()
    before = [fresh.get(path, from_=now - 600, to=now + 5, **query) for path, query in questions]
    assert fresh.stop() == 0
    fresh.start()
    assert [fresh.get(path, from_=now - 600, to=now + 5, **query) for path, query in questions] == before
    fresh.push(cpu_profile(1), "id-1")
    assert fresh.get("status")["duplicates"] == 1
    fresh.push(cpu_profile(9), "id-9")
    assert total(fresh) == sum(cpu_profile(number).totals()[1] for number in (0, 1, 2, 9))


def test_kill_9_loses_nothing_acknowledged(fresh: RunningCollector, full: bool) -> None:
    """Killed at random moments under load, the store holds each acknowledged push, and each once."""
    rounds = 20 if full else 3
    dice = random.Random(7)
    acknowledged: dict[str, int] = {}
    sent: dict[str, int] = {}

    def push(worker: int, attempt: int) -> None:
        client = PushClient(fresh.http, timeout_s=5)
        try:
            for number in range(10_000):
                push_id = f"{attempt}-{worker}-{number}"
                profile = cpu_profile(number % 50)
                sent[push_id] = profile.totals()[1]
                client.push(encode_push([series_of(profile, push_id)]))
                acknowledged[push_id] = sent[push_id]
        except PushFailed:
            return

    for attempt in range(rounds):
        workers = [threading.Thread(target=push, args=(worker, attempt)) for worker in range(3)]
        for worker in workers:
            worker.start()
        have = len(acknowledged)
        wait_for(lambda have=have: len(acknowledged) > have + 5, 20)
        time.sleep(dice.uniform(0, 0.5))
        fresh.kill()
        for worker in workers:
            worker.join()
        fresh.start()
    # What was committed and never acknowledged may be there; a client would send it again.
    for push_id in sorted(set(sent) - set(acknowledged)):
        seed = int(push_id.rpartition("-")[2]) % 50
        fresh.push(cpu_profile(seed), push_id)
    now = time.time()
    rows = fresh.get("series", type=CPU, from_=now - 3600, to=now + 5)["series"]
    assert sum(row["profiles"] for row in rows) == len(sent)
    assert total(fresh) == sum(sent.values())
    assert len(acknowledged) > 5 * rounds


def test_a_full_disk_is_503_and_recovers(fresh: RunningCollector) -> None:
    """While the files cannot grow, pushes are refused as unavailable; afterwards they are stored again."""
    fresh.push(cpu_profile(1), "before")
    fresh.limit_files(1000)
    status, answer = fresh.post_push(encode_push([series_of(cpu_profile(2), "during")]))
    assert (status, answer["code"]) == (503, "unavailable")
    assert fresh.process.poll() is None
    counts = fresh.get("status")
    assert counts["commit_failures"] >= 1
    assert counts["refused"] == 1
    fresh.limit_files(-1)
    wait_for(lambda: fresh.post_push(encode_push([series_of(cpu_profile(2), "during")]))[0] == 200)
    fresh.push(cpu_profile(3), "after")
    expected = sum(cpu_profile(number).totals()[1] for number in (1, 2, 3))
    assert total(fresh) == expected
    assert fresh.stop() == 0
    fresh.start()
    assert total(fresh) == expected


def test_sigterm_acknowledges_what_is_in_hand(fresh: RunningCollector) -> None:
    """Pushes running at SIGTERM are acknowledged and on disk, or fail; exit 0 within bounds."""
    acknowledged: list[int] = []

    def push(worker: int) -> None:
        client = PushClient(fresh.http, timeout_s=10)
        try:
            for number in range(1000):
                profile = cpu_profile(number)
                client.push(encode_push([series_of(profile, f"{worker}-{number}")]))
                acknowledged.append(profile.totals()[1])
        except PushFailed:
            return

    workers = [threading.Thread(target=push, args=(worker,)) for worker in range(4)]
    for worker in workers:
        worker.start()
    wait_for(lambda: len(acknowledged) > 10)
    begun = time.monotonic()
    assert fresh.stop() == 0
    assert time.monotonic() - begun < 15
    for worker in workers:
        worker.join()
    fresh.start()
    assert total(fresh) >= sum(acknowledged)
    assert fresh.get("status")["faults"] == 0


def test_a_second_collector_cannot_take_the_store_or_the_port(
    fresh: RunningCollector, tmp_path: Path
) -> None:
    """Both end with exit 3 and a next step, not with a traceback."""
    base = [sys.executable, "-m", "quayscope.cli.main", "collector", "--grpc-listen", "127.0.0.1:0"]
    port = fresh.http.rpartition(":")[2]
    cases = (
        (["--listen", "127.0.0.1:0", "--data", str(fresh.directory / "data")], 3, "--data"),
        (["--listen", f"127.0.0.1:{port}", "--data", str(tmp_path / "other")], 3, "--listen"),
        (["--listen", "0.0.0.0:0", "--data", str(tmp_path / "other")], 2, "--insecure"),
        (["--listen", "nonsense", "--data", str(tmp_path / "other")], 2, "127.0.0.1:4040"),
    )
    for arguments, code, text in cases:
        ended = subprocess.run([*base, *arguments], capture_output=True, text=True, timeout=30)
        assert ended.returncode == code, (arguments, ended.stderr)
        assert text in ended.stderr
        assert "Traceback" not in ended.stderr
    taken = [*base[:-1], fresh.grpc, "--listen", "127.0.0.1:0", "--data", str(tmp_path / "third")]
    ended = subprocess.run(taken, capture_output=True, text=True, timeout=30)
    assert (ended.returncode, "--grpc-listen" in ended.stderr) == (3, True), ended.stderr
