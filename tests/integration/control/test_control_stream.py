"""The control stream: streams that break, peers of other versions."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from integration.collector.running_collector import RunningCollector, wait_for
from integration.control.pods import Sidecar, begin, burning, wait_attached, wait_over
from quayscope.profile.control import (
    ATTACH_METHOD,
    SERVICE,
    Answer,
    CancelCapture,
    Command,
    FromSidecar,
    Heartbeat,
    HeartbeatAnswer,
    Part,
    Register,
    SetRate,
    StartCapture,
    Target,
    Targets,
    Unknown,
    Welcome,
    decode_from_collector,
    decode_from_sidecar,
    encode_from_collector,
    encode_from_sidecar,
)
from quayscope.profile.protowire import put_bytes, put_text
from quayscope.sidecar.control.offset import ClockOffset
from quayscope.sidecar.control.stream import ControlStream, Peer

METHOD = f"/{SERVICE}/{ATTACH_METHOD}"


def test_a_process_without_an_agent_is_captured_twice_at_once(
    attached_collector: RunningCollector, tmp_path: Path
) -> None:
    """Two captures share one py-spy, each says what it lacks; one that ends is partial."""
    with burning(2) as (target, dying):
        sidecar = Sidecar(
            tmp_path, "pyspy-0", attached_collector, "--postgres", "off",
            "--python", f"{target.pid}=worker", "--python", f"{dying.pid}=dying",
        )  # fmt: skip
        try:
            wait_attached(attached_collector, "pyspy-0", 2)
            asked: dict[str, Any] = {"selector": {"pod": "pyspy-0", "role": "worker"}, "kinds": ["python"]}
            _, long, _ = begin(attached_collector, **asked, seconds=4)
            both: dict[str, Any] = {"selector": {"pod": "pyspy-0"}, "kinds": ["python"]}
            wait_for(lambda: attached_collector.get(f"captures/{long['id']}")["progress"] > 0.25)
            _, short, _ = begin(attached_collector, **both, seconds=1)
            wait_for(lambda: attached_collector.get(f"captures/{short['id']}")["progress"] > 0.6)
            dying.kill()
            shown = {
                name: wait_over(attached_collector, one["id"])
                for name, one in (("long", long), ("short", short))
            }
            assert {one["state"] for one in shown.values()} == {"done"}
            (cut,) = shown["long"]["parts"]
            assert "py-spy began anew for another capture" in cut["error"]
            assert cut["state"] == "partial"
            ended = {part["labels"]["role"]: part for part in shown["short"]["parts"]}
            assert f"process {dying.pid} ended" in ended["dying"]["error"]
            assert ended["worker"]["profiles"][0]["totals"][1] > 0
        finally:
            sidecar.stop()


class FakeSidecar:
    """A peer that speaks the protocol by hand."""

    def __init__(self, address: str, first: bytes) -> None:
        self.channel = grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)])
        self._outgoing: queue.Queue[bytes | None] = queue.Queue()
        self._outgoing.put(first)
        self.call = self.channel.stream_stream(METHOD)(iter(self._outgoing.get, None))

    def say(self, data: bytes) -> None:
        self._outgoing.put(data)

    def hear(self) -> Any:
        return decode_from_collector(next(self.call))

    def close(self) -> None:
        self._outgoing.put(None)
        self.call.cancel()
        self.channel.close()


def _unknown(number: int) -> bytes:
    out = bytearray()
    put_bytes(out, number, b"\x08\x01")
    return bytes(out)


def test_the_collector_answers_what_it_does_not_know(attached_collector: RunningCollector) -> None:
    """A newer message, a broken one and a refusal cost nothing; a first message must be a registration."""
    target = Target(1, "python", {"service_name": "x", "pod": "fake-1"})
    register = Register("fake-1", "9.9", {"pod": "fake-1"}, (target,))
    peer = FakeSidecar(attached_collector.grpc, encode_from_sidecar(register))
    try:
        assert isinstance(peer.hear(), Welcome)
        peer.say(_unknown(99))
        assert peer.hear() == Answer("", "unknown", "message 99 is not known here")
        peer.say(b"\x0a\xff")
        assert peer.hear().status == "refused"
        peer.say(encode_from_sidecar(Heartbeat(5, 0, 0)))
        answer = peer.hear()
        assert isinstance(answer, HeartbeatAnswer)
        assert answer.sent_ns == 5
        assert answer.received_ns <= answer.answered_ns
        # An older sidecar does not know the command: the capture ends at once, and says so.
        _, asked, _ = begin(attached_collector, selector={"pod": "fake-1"}, seconds=60)
        command = peer.hear()
        assert command.id == asked["id"]
        peer.say(encode_from_sidecar(Answer(command.id, "unknown", "command 2 is not known here")))
        shown = wait_over(attached_collector, asked["id"])
        assert (shown["state"], shown["failed"][0]["error"]) == (
            "failed",
            "unknown: command 2 is not known here",
        )
        # A part that nobody asked for, and one that is no profile.
        peer.say(encode_from_sidecar(Part("20260101T000000-00000000", 0)))
        _, asked, _ = begin(attached_collector, selector={"pod": "fake-1"}, seconds=1)
        assert peer.hear().id == asked["id"]
        part = Part(asked["id"], 0, target, "python")
        peer.say(encode_from_sidecar(Answer(asked["id"], "accepted", "", (part,))))
        peer.say(encode_from_sidecar(part._replace(profiles=(b"nothing",), types=("process_cpu",))))
        shown = wait_over(attached_collector, asked["id"])
        assert "cannot be read" in shown["failed"][0]["error"]
        peer.say(encode_from_sidecar(Targets(())))
        wait_for(lambda: begin(attached_collector, selector={"pod": "fake-1"})[0] == 404)
    finally:
        peer.close()
    rude = FakeSidecar(attached_collector.grpc, _unknown(7))
    with pytest.raises(grpc.RpcError) as caught:
        rude.hear()
    rude.close()
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    status = attached_collector.get("status")
    assert min(status[name] for name in ("control_unknown", "control_malformed", "capture_parts_late")) >= 1
    assert status["faults"] == 0


def test_many_sidecars_leave_room_for_pushes(attached_collector: RunningCollector) -> None:
    """More streams than the server has threads for requests: it still answers, and captures reach all."""
    peers = [
        FakeSidecar(
            attached_collector.grpc,
            encode_from_sidecar(
                Register(f"many-{n}", "1", {"pod": f"many-{n}"}, (Target(n + 1, "go", {"many": "yes"}),))
            ),
        )
        for n in range(40)
    ]
    try:
        for peer in peers:
            assert isinstance(peer.hear(), Welcome)
        with grpc.insecure_channel(attached_collector.grpc) as channel:
            channel.unary_unary("/push.v1.PusherService/Push")(b"", timeout=10)
        _, asked, _ = begin(attached_collector, selector={"many": "yes"}, seconds=30)
        for peer in peers:
            assert peer.hear().id == asked["id"]
        status, _, _ = attached_collector.request("DELETE", f"/api/v1/captures/{asked['id']}")
        assert status == 204
        for peer in peers:
            command = peer.hear()
            assert command.body == CancelCapture(asked["id"])
            peer.say(encode_from_sidecar(Answer(asked["id"], "accepted", "no target fits")))
        assert wait_over(attached_collector, asked["id"])["state"] == "cancelled"
    finally:
        for peer in peers:
            peer.close()


class FakeCollector:
    """A server that a sidecar attaches to, by hand."""

    def __init__(self) -> None:
        self.heard: queue.Queue[FromSidecar] = queue.Queue()
        self.to_send: queue.Queue[bytes | None] = queue.Queue()
        self.attaches = 0
        self._server = grpc.server(ThreadPoolExecutor(8))
        handler = grpc.stream_stream_rpc_method_handler(self._attach)
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, {ATTACH_METHOD: handler}),)
        )
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def _attach(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        self.attaches += 1

        def read() -> None:
            try:
                for data in requests:
                    self.heard.put(decode_from_sidecar(data))
            except grpc.RpcError:
                return

        threading.Thread(target=read, daemon=True).start()
        yield encode_from_collector(Welcome("9", 100))
        yield from iter(self.to_send.get, None)

    def next(self, kind: type) -> Any:
        """The next message of a kind."""
        while not isinstance(message := self.heard.get(timeout=10), kind):
            pass
        return message

    def stop(self) -> None:
        self.to_send.put(None)
        self._server.stop(0).wait()


def test_a_sidecar_comes_back_and_answers_what_it_does_not_know() -> None:
    """A cut stream is opened again, what waited is sent; what is unknown or broken is answered."""
    collector = FakeCollector()
    done: list[Command] = []

    def obey(command: Command) -> Answer:
        done.append(command)
        if command.id == "bad":
            raise ValueError("broken")
        return Answer(command.id, "accepted")

    targets: list[tuple[Target, ...]] = [(Target(1, "go"),)]
    stream = ControlStream(
        Peer(f"http://127.0.0.1:{collector.port}"), lambda: Register("i"), lambda: targets[0], obey
    )
    stream.start()
    try:
        assert collector.next(Register) == Register("i", targets=(Target(1, "go"),))
        assert collector.next(Heartbeat).sent_ns > 0
        targets[0] = (Target(1, "go"), Target(2, "python"))
        assert collector.next(Targets).targets == targets[0]
        body = bytearray()
        put_text(body, 1, "c9")
        put_bytes(body, 9, b"")
        newer = bytearray()
        put_bytes(newer, 3, body)
        for said, answer in (
            (bytes(newer), Answer("c9", "unknown", "command 9 is not known here")),
            (_unknown(50), Answer("", "unknown", "message 50 is not known here")),
            (encode_from_collector(Command("c1", SetRate(99))), Answer("c1", "accepted")),
            (
                encode_from_collector(Command("bad", StartCapture())),
                Answer("bad", "refused", "internal error: ValueError"),
            ),
        ):
            collector.to_send.put(said)
            assert collector.next(Answer) == answer
        collector.to_send.put(b"\x0a\xff\x01")
        assert collector.next(Answer).status == "refused"
        collector.to_send.put(None)
        assert collector.next(Register).instance == "i"
        assert collector.attaches == 2
        stream.send(Answer("late", "accepted"))
        assert collector.next(Answer) == Answer("late", "accepted")
        assert [one.body for one in done] == [SetRate(99), StartCapture()]
        assert (stream.counts["cut"], stream.counts["faults"]) == (1, 1)
    finally:
        stream.close()
        collector.stop()
    assert not isinstance(Unknown(), Command)


def test_the_offset_is_that_of_the_shortest_round_trip() -> None:
    """NTP's estimate; impossible exchanges are left out, and a clock that was set is noticed."""
    offset = ClockOffset()
    assert offset.best.round_trip_ns == 0
    offset.add(HeartbeatAnswer(1_000, 501_500, 501_600), 2_100)  # 500,000 ahead; 500 there, 500 back
    assert offset.best == (500_000, 1_000)
    offset.add(HeartbeatAnswer(10_000, 519_000, 519_000), 20_000)  # slow on the way there
    assert offset.best == (500_000, 1_000)
    offset.add(HeartbeatAnswer(50_000, 40_000, 30_000), 60_000)
    offset.add(HeartbeatAnswer(50_000, 40_000, 40_000), 49_000)
    assert offset.best == (500_000, 1_000)
    offset.add(HeartbeatAnswer(100_000, 9_100_500, 9_100_500), 101_000)
    assert offset.best == (9_000_000, 1_000)
