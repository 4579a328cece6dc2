"""A walk over BPF instructions that proves which values a program can return.

Every path from the first instruction is followed, with what is known of register 0 on it: a constant, or nothing. The
set of states is finite, so the walk ends. Instructions are those of ``Documentation/bpf/standardization/instruction-set.rst``.
"""

from __future__ import annotations

import struct

UNKNOWN = None
_JUMPS = {5, 6}  # BPF_JMP, BPF_JMP32
_ALU = {4, 7}  # BPF_ALU, BPF_ALU64
_CALL, _EXIT, _ALWAYS = 0x80, 0x90, 0x00


def returned_values(code: bytes) -> set[int | None]:
    """What register 0 can hold at each exit; `UNKNOWN` where that is not a constant.

    Raises:
        AssertionError: A path runs out of the program, or an instruction is not understood.
    """
    instructions = list(struct.iter_unpack("<BBhi", code))
    returned: set[int | None] = set()
    seen: set[tuple[int, int | None]] = set()
    work: list[tuple[int, int | None]] = [(0, UNKNOWN)]
    while work:
        at, value = work.pop()
        if (at, value) in seen:
            continue
        seen.add((at, value))
        assert 0 <= at < len(instructions), "a path leaves the program"
        opcode, registers, offset, immediate = instructions[at]
        kind, operation = opcode & 7, opcode & 0xF0
        if kind in _JUMPS:
            if operation == _EXIT:
                returned.add(value)
            elif operation == _CALL:
                work.append((at + 1, UNKNOWN))
            elif operation == _ALWAYS:
                work.append((at + 1 + offset, value))
            else:
                work += [(at + 1, value), (at + 1 + offset, value)]
            continue
        if registers & 15 == 0 and kind not in {2, 3}:  # register 0 is written, and not memory
            value = immediate if opcode in {0xB7, 0xB4} else UNKNOWN  # a move of a constant
        if kind == 3 and opcode == 0xDB and immediate & 1:
            value = UNKNOWN  # an atomic operation that fetches may write any register
        assert kind in _ALU | {0, 1, 2, 3}
        work.append((at + (2 if opcode == 0x18 else 1), value))
    return returned
