"""Frames by the book: every register by name, any rule, any machine.

The slow way, for rows that are no short rule (signal frames, realigned stacks, expressions) and for machines
other than x86-64. aarch64 signs return addresses where the hardware can (pointer authentication); the
signature's bits are stripped, not checked.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from quayscope.sidecar.errors import MalformedCfi
from quayscope.sidecar.native.cfi import CfaRule, How, Recovery
from quayscope.sidecar.native.expressions import RegisterUnknown, evaluate
from quayscope.sidecar.native.maps import AddressSpace
from quayscope.sidecar.native.rules import General, Kind, Rule
from quayscope.sidecar.native.samples import End

__all__ = ["AARCH64", "X86_64", "Machine", "NotDumped", "caller", "loader", "walk_by_name"]

_MASK = (1 << 64) - 1
_WORD = struct.Struct("<Q")


class Machine(NamedTuple):
    """Where the numbers of registers differ: the stack and frame pointers, the program counter.

    `code_mask` are the bits of a user-space code address.
    """

    stack_pointer: int
    frame_pointer: int
    pc: int
    code_mask: int


X86_64 = Machine(7, 6, 16, _MASK)
AARCH64 = Machine(31, 29, 32, (1 << 48) - 1)


class NotDumped(LookupError):
    """An address outside the stack dump."""


class Learner(Protocol):
    """Where rules come from: see `view.View`."""

    def general(self, space: AddressSpace, address: int) -> Rule:
        """Return the rule at an address, with registers by name where there is information."""
        ...


def loader(base: int, data: memoryview) -> Callable[[int], int]:
    """Return what reads 8 bytes at an address of a dump that begins at `base`; it raises `NotDumped`."""
    size = len(data)

    def load(address: int) -> int:
        offset = address - base
        if offset < 0 or offset + 8 > size:
            raise NotDumped
        value: int = _WORD.unpack_from(data, offset)[0]
        return value

    return load


def caller(
    general: General, registers: Sequence[int | None], load: Callable[[int], int], machine: Machine
) -> list[int | None]:
    """Return the caller's registers, its program counter in the machine's `pc`.

    Raises `NotDumped` where a word is not in the dump, `RegisterUnknown` where a register is not known, else
    `MalformedCfi`.
    """
    if general.return_column >= len(registers):
        raise MalformedCfi(f"register {general.return_column} of another machine")
    stack_pointer = registers[machine.stack_pointer]
    cfa = _frame_address(general.cfa, registers, load)
    found = list(registers)
    for number, recovery in general.registers.items():
        if number >= len(found):
            continue
        if recovery.how == How.OFFSET and number != general.return_column:
            # In an epilogue what was popped already lies below the stack pointer, outside the dump: the
            # register holds it again.
            if stack_pointer is not None and cfa + recovery.value < stack_pointer:
                continue
            try:
                found[number] = load(cfa + recovery.value & _MASK)
            except NotDumped:
                found[number] = None
        else:
            found[number] = _recover(recovery, registers, load, cfa)
    if machine.stack_pointer not in general.registers:
        found[machine.stack_pointer] = cfa
    pc = found[general.return_column]
    found[machine.pc] = None if pc is None else pc & machine.code_mask
    return found


def _frame_address(rule: CfaRule, registers: Sequence[int | None], load: Callable[[int], int]) -> int:
    if rule.expression:
        return evaluate(rule.expression, registers, load)
    return _value(registers, rule.register) + rule.offset & _MASK


def _recover(
    recovery: Recovery, registers: Sequence[int | None], load: Callable[[int], int], cfa: int
) -> int | None:
    how, value, expression = recovery
    if how == How.OFFSET:
        return load(cfa + value & _MASK)
    if how == How.EXPRESSION:
        return load(evaluate(expression, registers, load, cfa))
    if how == How.VALUE_EXPRESSION:
        return evaluate(expression, registers, load, cfa)
    if how == How.VALUE_OFFSET:
        return cfa + value & _MASK
    if how == How.REGISTER:
        return _value(registers, value)
    return None


def _value(registers: Sequence[int | None], number: int) -> int:
    value = registers[number] if 0 <= number < len(registers) else None
    if value is None:
        raise RegisterUnknown(f"register {number} is not known")
    return value


def walk_by_name(
    learner: Learner,
    space: AddressSpace,
    machine: Machine,
    registers: Sequence[int],
    data: memoryview,
    out: list[int],
    most: int,
) -> End:
    """Walk a whole stack; `out` gets its addresses, the first one among them, at most `most`."""
    load = loader(registers[machine.stack_pointer], data)
    state: list[int | None] = list(registers)
    at = registers[machine.pc]
    out.append(at)
    try:
        while True:
            rule = learner.general(space, at)
            sp = _value(state, machine.stack_pointer)
            kind, general = rule[0], rule[3]
            signal = False
            if kind == Kind.ROOT:
                return "root"
            if kind == Kind.UNMAPPED:
                if len(out) > 1:
                    out.pop()
                return "unmapped"
            if general is not None:
                state = caller(general, state, load, machine)
                signal = general.signal
            else:
                frame = _value(state, machine.frame_pointer)
                if not frame:
                    return "root" if kind == Kind.CHAIN else "rules"
                state = _chain(frame, state, load, machine)
            after = _value(state, machine.stack_pointer)
            # On machines with a link register a leaf has not moved the stack pointer.
            sinks = after < sp or (after == sp and len(out) > 1)
            if not signal and (sinks or after & 7):
                return "rules" if kind in (Kind.GUESS, Kind.GENERATED) else "memory"
            pc = state[machine.pc]
            if not pc:
                return "root" if pc == 0 else "rules"
            at = pc if signal else pc - 1
            out.append(at)
            if len(out) >= most:
                return "limit"
    except NotDumped:
        return "dump"
    except MalformedCfi:
        return "rules"


def _chain(
    frame: int, registers: Sequence[int | None], load: Callable[[int], int], machine: Machine
) -> list[int | None]:
    """Step by the frame pointer, which points to the caller's and the return address above it."""
    found = list(registers)
    found[machine.frame_pointer] = load(frame)
    found[machine.pc] = load(frame + 8 & _MASK) & machine.code_mask
    found[machine.stack_pointer] = frame + 16 & _MASK
    return found
