"""Call frame instructions: what a function's unwind entry says about each stretch of its code.

Source: DWARF 5, section 6.4. A row says how to get from a frame to its caller: where the canonical frame
address (CFA) is, and where the caller's registers lie.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from quayscope.sidecar.errors import MalformedCfi
from quayscope.sidecar.native.expressions import sleb, uleb

__all__ = ["CfaRule", "How", "Program", "Recovery", "Row", "run"]

_MASK = (1 << 64) - 1
_MAX_ROWS = 1 << 16
_MAX_REMEMBERED = 64
_REGISTERS = 33
"""Rules of registers past those of a `RawSample` are passed over: nothing is unwound by vectors or flags."""


class How:
    """How a register of the caller is recovered (DWARF 5, section 6.4.1)."""

    OFFSET = 0
    """Saved at the CFA plus `value`."""
    UNDEFINED = 1
    """Not at all; of the return address: this is the outermost frame."""
    REGISTER = 2
    """It is in register `value`."""
    EXPRESSION = 3
    """Saved where an expression over the CFA says."""
    VALUE_OFFSET = 4
    """It is the CFA plus `value`."""
    VALUE_EXPRESSION = 5
    """It is what an expression over the CFA comes to."""


class Recovery(NamedTuple):
    """One register's rule; a register without one keeps its value."""

    how: int
    value: int = 0
    expression: bytes = b""


class CfaRule(NamedTuple):
    """The canonical frame address: a register plus an offset, or an expression where there is one."""

    register: int
    offset: int
    expression: bytes = b""


class Row(NamedTuple):
    """What holds from virtual address `start` to the next row's."""

    start: int
    cfa: CfaRule
    registers: Mapping[int, Recovery]


class Program(NamedTuple):
    """Instructions from offset `at` of `data` to its end, for code that begins at virtual address `start`."""

    data: bytes
    at: int
    start: int
    code_factor: int
    data_factor: int


def run(program: Program, initial: Row, pointer: Callable[[int], tuple[int, int]]) -> list[Row]:
    """Carry the instructions out from what `initial` says; returns the rows in order of address.

    `pointer` decodes an encoded pointer at an offset of the data (value, offset after it). Raises
    `MalformedCfi` for an unknown instruction, addresses that go back, and more than 65,536 rows; IndexError
    where one is cut short.
    """
    data, at, start, code_factor, data_factor = program
    machine = _Machine(initial, data_factor)
    rows: list[Row] = []
    end = len(data)
    while at < end:
        operation = data[at]
        at += 1
        kind = operation & 0xC0
        if kind == 0x80:
            value, at = uleb(data, at)
            machine.save(operation & 0x3F, value * data_factor)
            continue
        if kind == 0x40:
            moved = start + (operation & 0x3F) * code_factor
        elif operation in _ADVANCES:
            size = _ADVANCES[operation]
            if at + size > end:
                raise MalformedCfi("an instruction is cut short")
            moved = start + int.from_bytes(data[at : at + size], "little") * code_factor
            at += size
        elif operation == 0x01:
            moved, at = pointer(at)
            if moved < start:
                raise MalformedCfi("addresses that go back")
        elif kind == 0xC0:
            machine.restore(operation & 0x3F)
            continue
        else:
            at = machine.step(operation, data, at)
            continue
        if moved > _MASK:
            raise MalformedCfi("addresses that do not exist")
        if moved != start:
            rows.append(machine.row(start))
            if len(rows) >= _MAX_ROWS:
                raise MalformedCfi("too many rows")
            start = moved
    rows.append(machine.row(start))
    return rows


_ADVANCES = {0x02: 1, 0x03: 2, 0x04: 4}


class _Machine:
    """The state that instructions change; registers are copied when they change after a row shares them."""

    def __init__(self, initial: Row, data_factor: int) -> None:
        self._initial = initial.registers
        self._factor = data_factor
        self._cfa = initial.cfa
        self._registers: Mapping[int, Recovery] = initial.registers
        self._own: dict[int, Recovery] | None = None
        self._remembered: list[tuple[CfaRule, Mapping[int, Recovery]]] = []

    def row(self, start: int) -> Row:
        self._own = None
        return Row(start, self._cfa, self._registers)

    def _writable(self) -> dict[int, Recovery]:
        own = self._own
        if own is None:
            own = self._own = dict(self._registers)
            self._registers = own
        return own

    def save(self, register: int, offset: int) -> None:
        if register < _REGISTERS:
            self._writable()[register] = Recovery(How.OFFSET, offset)

    def restore(self, register: int) -> None:
        first = self._initial.get(register)
        if first is not None:
            self._writable()[register] = first
        elif register in self._registers:
            del self._writable()[register]

    def _set(self, register: int, recovery: Recovery) -> None:
        if register < _REGISTERS:
            self._writable()[register] = recovery

    def step(self, operation: int, data: bytes, at: int) -> int:
        """Carry out an instruction that does not move on; returns where the next one lies."""
        if operation == 0x0E:  # def_cfa_offset
            value, at = uleb(data, at)
            self._cfa = CfaRule(self._cfa.register, value)
        elif operation == 0x0D:  # def_cfa_register
            value, at = uleb(data, at)
            self._cfa = CfaRule(value, self._cfa.offset)
        elif operation == 0x0A:  # remember_state
            if len(self._remembered) >= _MAX_REMEMBERED:
                raise MalformedCfi("too many states to remember")
            self._remembered.append((self._cfa, self._registers))
            self._own = None
        elif operation == 0x0B:  # restore_state
            if not self._remembered:
                raise MalformedCfi("a state to restore that was not remembered")
            self._cfa, self._registers = self._remembered.pop()
            self._own = None
        elif operation == 0x0C:  # def_cfa
            register, at = uleb(data, at)
            value, at = uleb(data, at)
            self._cfa = CfaRule(register, value)
        elif operation == 0x0F:  # def_cfa_expression
            expression, at = _block(data, at)
            self._cfa = CfaRule(-1, 0, expression)
        elif operation == 0x12:  # def_cfa_sf
            register, at = uleb(data, at)
            value, at = sleb(data, at)
            self._cfa = CfaRule(register, value * self._factor)
        elif operation == 0x13:  # def_cfa_offset_sf
            value, at = sleb(data, at)
            self._cfa = CfaRule(self._cfa.register, value * self._factor)
        elif operation == 0x2E:  # GNU_args_size
            _, at = uleb(data, at)
        elif operation not in (0x00, 0x2D):  # nop, AARCH64_negate_ra_state: signatures are stripped always
            at = self._step_register(operation, data, at)
        return at

    def _step_register(self, operation: int, data: bytes, at: int) -> int:
        register, at = uleb(data, at)
        if operation == 0x05:  # offset_extended
            value, at = uleb(data, at)
            self.save(register, value * self._factor)
        elif operation == 0x06:  # restore_extended
            self.restore(register)
        elif operation == 0x07:  # undefined
            self._set(register, Recovery(How.UNDEFINED))
        elif operation == 0x08:  # same_value
            if register in self._registers:
                del self._writable()[register]
        elif operation == 0x09:  # register
            value, at = uleb(data, at)
            self._set(register, Recovery(How.REGISTER, value))
        elif operation in (0x10, 0x16):  # expression, val_expression
            expression, at = _block(data, at)
            how = How.EXPRESSION if operation == 0x10 else How.VALUE_EXPRESSION
            self._set(register, Recovery(how, 0, expression))
        elif operation in (0x11, 0x15):  # offset_extended_sf, val_offset_sf
            value, at = sleb(data, at)
            how = How.OFFSET if operation == 0x11 else How.VALUE_OFFSET
            self._set(register, Recovery(how, value * self._factor))
        elif operation == 0x14:  # val_offset
            value, at = uleb(data, at)
            self._set(register, Recovery(How.VALUE_OFFSET, value * self._factor))
        elif operation == 0x2F:  # GNU_negative_offset_extended
            value, at = uleb(data, at)
            self.save(register, -value * self._factor)
        else:
            raise MalformedCfi(f"call frame instruction {operation:#x}")
        return at


def _block(data: bytes, at: int) -> tuple[bytes, int]:
    size, at = uleb(data, at)
    if at + size > len(data):
        raise MalformedCfi("an expression is cut short")
    return data[at : at + size], at + size
