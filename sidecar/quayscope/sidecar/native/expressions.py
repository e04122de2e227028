"""DWARF expressions, as call frame information uses them: a small stack machine over registers and memory.

Source: DWARF 5, section 2.5. Values are 64 bits wide, as on every machine we unwind.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence

from quayscope.sidecar.errors import MalformedCfi

__all__ = ["RegisterUnknown", "evaluate", "signed", "sleb", "uleb"]

_MASK = (1 << 64) - 1


class RegisterUnknown(MalformedCfi):
    """An expression or a rule over a register whose value is not known here."""


_MAX_DEPTH = 64
_MAX_STEPS = 1000
"""Operations one expression may take: branches make loops."""

_BINARY: dict[int, Callable[[int, int], int]] = {
    0x1A: operator.and_,
    0x1C: operator.sub,
    0x1E: operator.mul,
    0x21: operator.or_,
    0x22: operator.add,
    0x24: lambda a, b: a << b if b < 64 else 0,
    0x25: lambda a, b: a >> b if b < 64 else 0,
    0x26: lambda a, b: signed(a) >> min(b, 63),
    0x27: operator.xor,
    0x29: operator.eq,
    0x2A: lambda a, b: signed(a) >= signed(b),
    0x2B: lambda a, b: signed(a) > signed(b),
    0x2C: lambda a, b: signed(a) <= signed(b),
    0x2D: lambda a, b: signed(a) < signed(b),
    0x2E: operator.ne,
}
_CONSTANTS = {0x08: (1, False), 0x09: (1, True), 0x0A: (2, False), 0x0B: (2, True)} | {
    0x0C: (4, False),
    0x0D: (4, True),
    0x0E: (8, False),
    0x0F: (8, True),
    0x03: (8, False),  # DW_OP_addr: never relocated by us, and seen in no unwind table
}


def signed(value: int) -> int:
    """Return a 64-bit pattern as a signed number."""
    return value - (1 << 64) if value >> 63 else value


def uleb(data: bytes, at: int) -> tuple[int, int]:
    """Return the unsigned LEB128 number at an offset, and the offset after it; IndexError where it is cut."""
    value = data[at]
    at += 1
    if value < 128:
        return value, at
    value &= 127
    shift = 7
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value & _MASK, at
        shift += 7
        if shift > 63:
            raise MalformedCfi("a number of more than 64 bits")


def sleb(data: bytes, at: int) -> tuple[int, int]:
    """Return the signed LEB128 number at an offset, and the offset after it; IndexError where it is cut."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return (value - (1 << shift) if byte & 64 else value), at
        if shift > 63:
            raise MalformedCfi("a number of more than 64 bits")


def evaluate(
    code: bytes,
    registers: Sequence[int | None],
    load: Callable[[int], int],
    initial: int | None = None,
) -> int:
    """Return what an expression comes to; `load` reads 8 bytes of memory, `initial` lies on the stack first.

    Raises `MalformedCfi` for an operation that unwind tables do not use, a register whose value is not
    known, an empty stack, or more than 1000 steps; and whatever `load` raises.
    """
    stack = [] if initial is None else [initial]
    at = steps = 0
    try:
        while at < len(code):
            steps += 1
            if steps > _MAX_STEPS or len(stack) > _MAX_DEPTH:
                raise MalformedCfi("an expression that does not end")
            operation = code[at]
            at = _step(operation, code, at + 1, stack, registers, load)
        return stack[-1] & _MASK
    except IndexError as error:
        raise MalformedCfi("an expression cut short, or over an empty stack") from error


def _step(
    operation: int,
    code: bytes,
    at: int,
    stack: list[int],
    registers: Sequence[int | None],
    load: Callable[[int], int],
) -> int:
    """Carry out one operation; returns where the next one lies."""
    if 0x70 <= operation <= 0x8F:  # breg
        offset, at = sleb(code, at)
        stack.append(_register(registers, operation - 0x70) + offset & _MASK)
    elif 0x30 <= operation <= 0x4F:  # lit
        stack.append(operation - 0x30)
    elif operation in _BINARY:
        second = stack.pop()
        stack.append(int(_BINARY[operation](stack.pop(), second)) & _MASK)
    elif operation == 0x06:  # deref
        stack.append(load(stack.pop()))
    elif operation == 0x94:  # deref_size
        size = code[at]
        at += 1
        stack.append(load(stack.pop()) & (1 << 8 * min(size, 8)) - 1)
    elif operation in _CONSTANTS:
        size, is_signed = _CONSTANTS[operation]
        value = code[at : at + size]
        if len(value) != size:
            raise IndexError
        at += size
        stack.append(int.from_bytes(value, "little", signed=is_signed) & _MASK)
    elif operation == 0x10:  # constu
        value_, at = uleb(code, at)
        stack.append(value_)
    elif operation == 0x11:  # consts
        value_, at = sleb(code, at)
        stack.append(value_ & _MASK)
    elif operation == 0x23:  # plus_uconst
        value_, at = uleb(code, at)
        stack[-1] = stack[-1] + value_ & _MASK
    elif operation == 0x92:  # bregx
        number, at = uleb(code, at)
        offset, at = sleb(code, at)
        stack.append(_register(registers, number) + offset & _MASK)
    elif operation in (0x28, 0x2F):  # bra, skip
        target = at + 2 + int.from_bytes(code[at : at + 2], "little", signed=True)
        at = target if operation == 0x2F or stack.pop() else at + 2
        if not 0 <= at <= len(code):
            raise MalformedCfi("a branch out of its expression")
    elif operation != 0x96:  # nop
        _shuffle(operation, code, at, stack)
        at += operation == 0x15
    return at


def _shuffle(operation: int, code: bytes, at: int, stack: list[int]) -> None:
    if operation == 0x12:  # dup
        stack.append(stack[-1])
    elif operation == 0x13:  # drop
        stack.pop()
    elif operation == 0x14:  # over
        stack.append(stack[-2])
    elif operation == 0x15:  # pick
        stack.append(stack[-1 - code[at]])
    elif operation == 0x16:  # swap
        stack[-1], stack[-2] = stack[-2], stack[-1]
    elif operation == 0x17:  # rot
        stack[-1], stack[-2], stack[-3] = stack[-2], stack[-3], stack[-1]
    elif operation == 0x19:  # abs
        stack[-1] = abs(signed(stack[-1]))
    elif operation == 0x1F:  # neg
        stack[-1] = -stack[-1] & _MASK
    elif operation == 0x20:  # not
        stack[-1] = ~stack[-1] & _MASK
    elif operation in (0x1B, 0x1D):  # div, mod
        divisor, dividend = stack.pop(), stack.pop()
        if not divisor:
            raise MalformedCfi("a division by nothing")
        if operation == 0x1D:
            stack.append(dividend % divisor)
        else:
            quotient = abs(signed(dividend)) // abs(signed(divisor))
            negative = (dividend >> 63) != (divisor >> 63)
            stack.append((-quotient if negative else quotient) & _MASK)
    else:
        raise MalformedCfi(f"operation {operation:#x} in an expression")


def _register(registers: Sequence[int | None], number: int) -> int:
    value = registers[number] if number < len(registers) else None
    if value is None:
        raise RegisterUnknown(f"register {number} is not known")
    return value
