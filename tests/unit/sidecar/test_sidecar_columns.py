"""Which slots and waits a tick looks at, and what it finds changed."""

from __future__ import annotations

from quayscope.sidecar.postgres.columns import Arrays, Slots

_SLOTS = 2028
_PROCS = 400


class _Server:
    """A server's columns, in memory of ours: of 2,028 slots, the first 200 and the last are in use."""

    def __init__(self, apart: int = 160, used: int = 200) -> None:
        self.heads = memoryview(bytearray(_SLOTS * 8)).cast("Q")
        self.waits = memoryview(bytearray(_PROCS * 4)).cast("I")
        self.looked: list[int] = []
        for slot in (*range(used), _SLOTS - 1):
            self.write(slot, 2, 100 + slot)
        self.arrays = Arrays(self.heads, self.waits, apart, self._renew)

    def write(self, slot: int, counter: int, pid: int) -> int:
        """Write a slot's counter and pid; returns them as one number."""
        self.heads[slot] = pid << 32 | counter
        return self.heads[slot]

    def _renew(self, slots: Slots) -> None:
        self.looked.append(sum(last - first for first, last in slots.stretches))


def test_idle_slots_are_seldom_looked_at() -> None:
    """Of 2,000 slots with 200 in use the front and the end are looked at each tick, all each tenth."""
    server = _Server()
    for _ in range(31):
        server.arrays.tick()
    assert server.looked[0] == _SLOTS
    assert server.looked.count(_SLOTS) == 4
    assert set(server.looked) == {_SLOTS, 200 + 64 + 160}
    # One more than were known of is within what is looked at, and moves the border.
    head = server.write(200, 2, 77)
    assert server.arrays.tick() == ((), [(200, head)])
    server.arrays.tick()
    assert server.looked[-1] == 201 + 64 + 160
    # When the last ones end, it moves back with the next look at all.
    for slot in range(150, 201):
        server.write(slot, 4, 0)
    assert len(server.arrays.tick()[1]) == 51
    for _ in range(10):
        server.arrays.tick()
    assert server.looked[-1] == 150 + 64 + 160


def test_one_far_behind_the_others() -> None:
    """A slot between those that are looked at each tick is found within ten, and looked at from then on."""
    server = _Server()
    server.arrays.tick()
    head = server.write(1200, 2, 77)
    found = [server.arrays.tick()[1] for _ in range(10)]
    assert [one for one in found if one] == [[(1200, head)]]
    head = server.write(1200, 4, 77)
    assert server.arrays.tick()[1] == [(1200, head)]


def test_few_slots_are_all_looked_at() -> None:
    """Where those in use nearly reach those at the end, there is no rest."""
    server = _Server(used=1900)
    for _ in range(25):
        server.arrays.tick()
    assert set(server.looked) == {_SLOTS}


def test_only_what_changed_is_found() -> None:
    """A change is found once, whatever else its stretch holds; a slot forgotten is found again."""
    server = _Server()
    first = dict(server.arrays.tick()[1])
    assert first == {slot: server.heads[slot] for slot in (*range(200), _SLOTS - 1)}
    heads = [(slot, server.write(slot, 4, 100 + slot)) for slot in (0, 63, 64, 199, _SLOTS - 1)]
    assert server.arrays.tick() == ((), heads)
    assert server.arrays.tick() == ((), ())
    server.arrays.heads.held[64] = 0
    assert server.arrays.tick() == ((), [heads[2]])


def test_waits_of_those_that_are_watched() -> None:
    """Waits are those of watched PGPROCs; those side by side are one stretch, small gaps in it too."""
    server = _Server()
    server.arrays.watch([3, 1, 9, 300])
    assert server.arrays.runs == [(1, 10), (300, 301)]
    server.arrays.tick()
    server.waits[9], server.waits[300], server.waits[200] = 7, 8, 9
    assert server.arrays.tick()[0] == [(9, 7), (300, 8)]
    assert server.arrays.tick()[0] == ()
    server.arrays.watch([200, 300])
    assert server.arrays.tick()[0] == [(200, 9)]
    # What a look at the slot showed meanwhile is what it is compared with.
    server.arrays.waits.held[200] = 5
    assert server.arrays.tick()[0] == [(200, 9)]
