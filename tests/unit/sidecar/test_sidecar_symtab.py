"""Symbol tables packed into arrays, and the names in them undone."""

from __future__ import annotations

import struct
import time
import tracemalloc

import pytest

from quayscope.sidecar.native.demangle import demangle
from quayscope.sidecar.native.symtab import FunctionTable, Starts, find_variable

FUNCTION, OBJECT, IFUNC = 2, 1, 10
LOCAL, GLOBAL, WEAK = 0, 1, 2


def table(*symbols: tuple[str, int, int, int, int]) -> tuple[bytes, bytes]:
    """Symbols given as (name, binding, kind, address, size)."""
    entries, names = bytearray(24), bytearray(b"\0")
    for name, binding, kind, address, size in symbols:
        entries += struct.pack("<IBBHQQ", len(names), binding << 4 | kind, 0, 1, address, size)
        names += name.encode() + b"\0"
    return bytes(entries), bytes(names)


def name_at(functions: FunctionTable, address: int, floor: int = -1) -> str | None:
    found = functions.at(address, floor)
    return None if found is None else found.name


def test_the_best_of_several_names() -> None:
    """Of aliases: sized before not, global before weak before local, plain before underscored."""
    functions = FunctionTable(
        [
            table(
                ("local", LOCAL, FUNCTION, 0x100, 8),
                ("__plain", GLOBAL, FUNCTION, 0x100, 8),
                ("plain", GLOBAL, FUNCTION, 0x100, 8),
                ("weak", WEAK, FUNCTION, 0x100, 8),
                ("unsized", GLOBAL, FUNCTION, 0x200, 0),
                ("sized", LOCAL, FUNCTION, 0x200, 8),
                ("chosen_at_run_time", GLOBAL, IFUNC, 0x300, 8),
                ("data", GLOBAL, OBJECT, 0x400, 8),
            )
        ]
    )
    assert [name_at(functions, address) for address in (0x100, 0x107, 0x108, 0x200, 0x300, 0x400, 0)] == [
        "plain",
        "plain",
        None,
        "sized",
        "chosen_at_run_time",
        None,
        None,
    ]


def test_earlier_tables_win() -> None:
    """The full table's name stands where the dynamic one has an alias; what only one has is found."""
    full = table(("a", LOCAL, FUNCTION, 0x10, 4), ("c", LOCAL, FUNCTION, 0x30, 4))
    dynamic = table(("c_alias", GLOBAL, FUNCTION, 0x30, 4), ("b", GLOBAL, FUNCTION, 0x20, 4))
    functions = FunctionTable([full, dynamic, table(("d", GLOBAL, FUNCTION, 0x40, 4))])
    assert [name_at(functions, address) for address in (0x10, 0x20, 0x30, 0x40)] == ["a", "b", "c", "d"]
    assert list(functions.addresses) == [0x10, 0x20, 0x30, 0x40]


def test_functions_without_a_size() -> None:
    """An assembly routine reaches to the next start that is known, and no further."""
    functions = FunctionTable([table(("routine", GLOBAL, FUNCTION, 0x100, 0))])
    starts = Starts([(0x180, 0), (0x80, 0)])
    assert name_at(functions, 0x17F, starts.before(0x17F)) == "routine"
    assert name_at(functions, 0x181, starts.before(0x181)) is None
    assert starts.before(0x7F) == -1


def test_addresses_far_apart() -> None:
    """Objects of more than 4 GB, and absurd sizes, are looked up like others."""
    high = (1 << 64) - 16
    functions = FunctionTable(
        [table(("high", GLOBAL, FUNCTION, high, 8), ("low", GLOBAL, FUNCTION, 0x10, 1 << 40))]
    )
    assert name_at(functions, high + 7) == "high"
    assert name_at(functions, high + 8) is None
    assert name_at(functions, 1 << 31) == "low"
    assert list(functions.addresses) == [0x10, high]


def test_what_is_not_defined_here_is_no_function() -> None:
    """An undefined function's entry, and one at no address, name nothing."""
    entries, names = table(("here", GLOBAL, FUNCTION, 0x100, 8), ("nowhere", GLOBAL, FUNCTION, 0, 8))
    undefined = struct.pack("<IBBHQQ", 1, GLOBAL << 4 | FUNCTION, 0, 0, 0x200, 8)
    functions = FunctionTable([(entries + undefined, names)])
    assert name_at(functions, 0x100) == "here"
    assert name_at(functions, 0x200) is None
    assert name_at(functions, 4) is None
    assert name_at(FunctionTable([(b"", b"")]), 4) is None


@pytest.mark.parametrize("in_order", [True, False])
def test_starts_of_a_frame_header(in_order: bool) -> None:
    """The search table's starts and entries are found by address, also where it is not sorted."""
    pairs = [(number * 16 - 64, 4096 + number * 24) for number in range(10)]
    shuffled = pairs if in_order else pairs[::-1]
    data = struct.pack("<4BII", 1, 0x1B, 3, 0x3B, 0, len(pairs))
    data += b"".join(struct.pack("<ii", *pair) for pair in shuffled)
    starts = Starts.of_frame_header(data, 0x1000)
    assert starts.addresses == [0x1000 + start for start, _ in pairs]
    for start, entry in pairs:
        assert starts.before(0x1000 + start + 15) == 0x1000 + start
        assert starts.entry_before(0x1000 + start + 15) == 0x1000 + entry
    assert starts.before(0x1000 - 65) == -1
    assert starts.entry_before(0x1000 - 65) == 0
    below = Starts.of_frame_header(data, 32)
    assert below.addresses == [0, *range(16, 128, 16)]
    assert below.before(0) == 0


def test_variables_by_name() -> None:
    """A variable is found by its whole name."""
    entries = table(("held", GLOBAL, OBJECT, 0x500, 8), ("held_back", GLOBAL, OBJECT, 0x600, 4))
    found = find_variable(*entries, "held_back")
    assert found is not None
    assert (found.address, found.size) == (0x600, 4)
    assert find_variable(*entries, "hel") is None


def test_tables_are_packed() -> None:
    """Functions take 13 bytes each and their names, and ten times that for a moment."""
    symbols = table(
        *((f"function_{n}", LOCAL, FUNCTION, 0x1000 + (n * 7919 % 10_000) * 16, 16) for n in range(10_000))
    )
    tracemalloc.start()
    functions = FunctionTable([symbols])
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(functions) == 10_000
    assert functions.cost <= 13 * 10_000 + len(symbols[1])
    assert held < 1.3 * functions.cost
    assert peak < 250 * 10_000


@pytest.mark.parametrize(
    ("mangled", "name"),
    [
        ("main", "main"),
        ("_start", "_start"),
        ("_ZN4shop7carefulEi", "shop::careful(int)"),
        ("_ZL4worki", "work(int)"),
        ("_ZSt4sortIPiEvT_S1_", "void std::sort<int*>(int*, int*)"),
        ("_ZN3foo3barE.cold", "foo::bar (.cold)"),
        ("_RNvCs1234_7mycrate3foo", "mycrate::foo"),
        ("_ZN4core3ptr13drop_in_place17h0123456789abcdefE", "core::ptr::drop_in_place"),
        ("_Znonsense", "_Znonsense"),
        ("_ZN", "_ZN"),
        ("_R", "_R"),
        ("", ""),
    ],
)
def test_demangled(mangled: str, name: str) -> None:
    """C++ and both of Rust's schemes; what is none of them stays as it is."""
    assert demangle(mangled) == name


def _doubling(levels: int) -> str:
    def reference(number: int) -> str:
        digits = ""
        number -= 1
        while number >= 0:
            digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"[number % 36] + digits
            number = number // 36 - 1 if number >= 36 else -1
        return f"S{digits}_"

    levels = min(levels, 36)
    pairs = "".join(f"S_I{reference(level + 1)}{reference(level + 1)}E" for level in range(levels))
    return f"_Z1fSt4pairIiiE{pairs}"


@pytest.mark.parametrize(
    "name",
    [
        _doubling(36),
        "_Z1f" + "P" * 100_000 + "i",
        "_ZN" + "1aI" * 50_000,
        "_R" + "N" * 50_000,
        "_Z1fI" + "Dp" * 500 + "T_Ev",
        "_RIC0" + "B_" * 1000,
    ],
)
def test_names_that_explode(name: str) -> None:
    """A name that stands for gigabytes, or is nested without end, stays mangled and is cut."""
    began = time.process_time()
    assert demangle(name) == name[:1024]
    assert time.process_time() - began < 1.0


def test_names_below_the_bound_are_cut() -> None:
    """The longest that is still undone takes milliseconds, and is cut at 1024 characters."""
    shown = demangle(_doubling(8))
    assert shown.startswith("f(std::pair<int, int>, ")
    assert len(shown) == 1024
