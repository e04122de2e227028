"""Run a command under a seccomp filter that answers EPERM to some system calls, as container runtimes do.

    python refuse_syscalls.py perf_event_open process_vm_readv -- COMMAND ...

The filter is inherited by everything the command starts, and cannot be taken off again. Privileges are kept
where we have them, so that a refusal is the filter's and nothing else's. Layout: seccomp(2), linux/filter.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys

# asm/unistd.h; AUDIT_ARCH values of linux/audit.h.
_NUMBERS = {
    "x86_64": {"perf_event_open": 298, "process_vm_readv": 310, "ptrace": 101, "setns": 308},
    "aarch64": {"perf_event_open": 241, "process_vm_readv": 270, "ptrace": 117, "setns": 268},
}
_ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_OFFSET_NUMBER, _OFFSET_ARCHITECTURE = 0, 4


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, if_true, if_false, value)


def _program(names: list[str]) -> bytes:
    machine = os.uname().machine
    numbers = [_NUMBERS[machine][name] for name in names]
    # Another architecture's calls pass: nothing here makes any.
    program = [
        _instruction(_LOAD, _OFFSET_ARCHITECTURE),
        _instruction(_JUMP_IF_EQUAL, _ARCHITECTURE[machine], 0, len(numbers) + 1),
        _instruction(_LOAD, _OFFSET_NUMBER),
    ]
    for index, number in enumerate(numbers):
        program.append(_instruction(_JUMP_IF_EQUAL, number, len(numbers) - index, 0))
    program += [_instruction(_RETURN, _ALLOW), _instruction(_RETURN, _ERRNO | errno.EPERM)]
    return b"".join(program)


def refuse(names: list[str]) -> None:
    """Refuse these system calls to this process and all that it starts; raises OSError."""

    class Filter(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("program", ctypes.c_void_p))

    program = ctypes.create_string_buffer(_program(names))
    count = (len(program) - 1) // 8
    filter_ = Filter(count, ctypes.addressof(program))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(
        _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(filter_), 0, 0
    ):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def main(arguments: list[str]) -> None:
    """Split the arguments at `--`, refuse what stands before, run what stands behind."""
    if "--" not in arguments or arguments[-1] == "--":
        sys.exit("usage: refuse_syscalls.py SYSCALL ... -- COMMAND ...")
    at = arguments.index("--")
    names, command = arguments[:at], arguments[at + 1 :]
    unknown = [name for name in names if name not in _NUMBERS[os.uname().machine]]
    if unknown:
        sys.exit(f"unknown system calls: {', '.join(unknown)}")
    refuse(names)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
