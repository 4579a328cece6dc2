"""Adapts a program of the listing to one kernel: fills in the offsets of fields, maps and constants."""

from __future__ import annotations

import struct
from collections.abc import Mapping

import attrs

from .._errors import ProtocolError
from ._btf import Btf, TypeKind
from ._listing import Constant, Field, FieldKind, Listing, MapReference, Note, Program

POISON = 195896080
"""The number of a function that no kernel has. A call of it replaces an instruction whose field this kernel does not have. If
that instruction can be reached, the verifier refuses the program, and its log shows this number (libbpf uses the same)."""
_OFFSET_CLASSES = frozenset({1, 2, 3})
"""``BPF_LDX``, ``BPF_ST``, ``BPF_STX`` have a 16-bit offset; in other instructions the offset is the immediate value."""
_LOAD_WIDE = 0x18
_PSEUDO_MAP_FD = 1
_POISONED = struct.pack("=BBhi", 0x85, 0, 0, POISON)
_HOOKS = {
    "tp_btf": (TypeKind.TYPEDEF, "btf_trace_"),
    "iter": (TypeKind.FUNCTION, "bpf_iter_"),
}
"""How BTF names what a program is attached to: the kind of type, and the beginning of its name."""


@attrs.frozen
class Kernel:
    """What of a kernel's BTF the programs need."""

    fields: Mapping[Field, int | None]
    """The number to fill in; `None` where this kernel has no such field."""
    hooks: Mapping[str, int]
    """Number of the BTF type of each section that needs one and that this kernel has."""


def hook_type(section: str) -> tuple[TypeKind, str] | None:
    """The BTF type that a program of this section is attached to; `None` where it needs none."""
    kind, _, name = section.partition("/")
    found = _HOOKS.get(kind)
    return None if found is None else (found[0], found[1] + name)


def resolve(listing: Listing, btf: bytes) -> Kernel:
    """Look up every field and hook of a listing in a kernel's BTF.

    Raises:
        ProtocolError: The bytes are not BTF, or are damaged.
    """
    fields = dict.fromkeys(field for program in listing.programs.values() for field in program.fields)
    hooks = {program.section: hook_type(program.section) for program in listing.programs.values()}
    wanted = {(TypeKind.STRUCT, field.struct) for field in fields} | {hook for hook in hooks.values() if hook}
    types = Btf(btf, wanted)
    numbers = {field: _number(types, field) for field in fields}
    return Kernel(numbers, {section: types.ids[hook] for section, hook in hooks.items() if hook in types.ids})


def _number(types: Btf, field: Field) -> int | None:
    found = types.field(field.struct, field.path)
    if field.kind is FieldKind.EXISTS:
        return int(found is not None)
    if found is None:
        return None
    return found[0] if field.kind is FieldKind.OFFSET else found[1]


def patch(program: Program, kernel: Kernel, maps: Mapping[str, int], constants: Mapping[str, int]) -> bytes:
    """The instructions for one kernel.

    Args:
        program: The program.
        kernel: Fields and hooks of the kernel.
        maps: Descriptors of maps by name.
        constants: Values of constants by name.

    Raises:
        ProtocolError: An offset does not fit its instruction.
    """
    code = bytearray(program.code)
    for number, note in program.notes:
        try:
            _fill(code, 8 * number, note, kernel, maps, constants)
        except struct.error as error:
            raise ProtocolError(f"instruction {number} of {program.name}: {note}: {error}") from error
    return bytes(code)


def _fill(
    code: bytearray,
    at: int,
    note: Note,
    kernel: Kernel,
    maps: Mapping[str, int],
    constants: Mapping[str, int],
) -> None:
    if isinstance(note, MapReference):
        code[at + 1] = code[at + 1] & 0x0F | _PSEUDO_MAP_FD << 4
        _wide(code, at, maps[note.name])
    elif isinstance(note, Constant):
        _wide(code, at, constants[note.name])
    else:
        value = kernel.fields[note]
        if value is None:
            code[at : at + 8] = _POISONED
        elif code[at] & 7 in _OFFSET_CLASSES:
            struct.pack_into("=h", code, at + 2, value)
        else:
            struct.pack_into("=i", code, at + 4, value)


def _wide(code: bytearray, at: int, value: int) -> None:
    """The 64-bit immediate of an instruction that takes two slots."""
    if code[at] != _LOAD_WIDE:
        raise ProtocolError("a map or a constant where nothing wide is loaded", raw=bytes(code[at : at + 8]))
    struct.pack_into("=I", code, at + 4, value & 0xFFFFFFFF)
    struct.pack_into("=I", code, at + 12, value >> 32)


def missing_fields(program: Program, kernel: Kernel) -> tuple[str, ...]:
    """The fields that a program reads and this kernel does not have, for a person."""
    return tuple(str(field) for field in program.fields if kernel.fields[field] is None)
