"""System calls that fail, as in a service whose calls are filtered (``seccomp(2)``); numbers are those of x86_64."""

from __future__ import annotations

import ctypes
import struct


def forbid(call: int, number: int, **arguments: int) -> None:
    """``seccomp(2)``: this system call fails with this error from here on, in the programs that follow, too.

    Where there are `arguments`, by their place (``_0``), only with all of them.
    """
    tests = [((0x20, 0, 0, 16 + 8 * int(place[1:])), value) for place, value in arguments.items()]
    program = b"".join(
        struct.pack("=HBBI", *each)
        for each in (
            (0x20, 0, 0, 0),
            (0x15, 0, 1 + 2 * len(tests), call),
            *(
                line
                for at, (load, value) in enumerate(tests)
                for line in (load, (0x15, 0, 1 + 2 * (len(tests) - 1 - at), value))
            ),
            (0x06, 0, 0, 0x00050000 | number),
            (0x06, 0, 0, 0x7FFF0000),
        )
    )
    buffer = ctypes.create_string_buffer(program)
    libc = ctypes.CDLL(None)
    described = ctypes.create_string_buffer(struct.pack("=H6xQ", len(program) // 8, ctypes.addressof(buffer)))
    assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
    assert libc.prctl(22, 2, described, 0, 0) == 0  # PR_SET_SECCOMP
