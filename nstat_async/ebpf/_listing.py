"""The programs as the library ships them: a listing made from ``programs.c`` at development time.

One instruction a line: eight bytes in hexadecimal (``struct bpf_insn``), its disassembly for the
reader, and after an ``@`` what is filled in before loading: ``@map NAME``, ``@constant NAME``, or
``@offset`` / ``@size`` / ``@exists`` with a structure and the way to one of its fields.
"""

from __future__ import annotations

import enum
from typing import Union

import attrs

from .._errors import ProtocolError


class FieldKind(enum.Enum):
    """Which number of a field is filled in (``enum bpf_core_relo_kind``)."""

    OFFSET = "offset"
    """Its offset in bytes."""
    SIZE = "size"
    """Its size in bytes."""
    EXISTS = "exists"
    """1 if this kernel has it, else 0."""


@attrs.frozen
class Field:
    """A field that is looked up by name in the kernel's BTF."""

    kind: FieldKind
    struct: str
    path: tuple[str | int, ...]
    """Names of members, one inside the other; a number is an index into an array."""

    def __str__(self) -> str:
        return ".".join(map(str, (self.struct, *self.path)))


@attrs.frozen
class MapReference:
    """The descriptor of a map."""

    name: str


@attrs.frozen
class Constant:
    """A number that the loader chooses; the verifier removes the branches that it makes unreachable."""

    name: str


Note = Union[Field, MapReference, Constant]


@attrs.frozen
class MapSpec:
    """A map as ``BPF_MAP_CREATE`` wants it."""

    name: str
    type: int
    """``enum bpf_map_type``."""
    max_entries: int
    """Entries, or bytes of a ring buffer."""
    key: int = 0
    """Size of a key in bytes."""
    value: int = 0
    """Size of a value in bytes."""
    map_flags: int = 0


@attrs.frozen
class Program:
    """One program of the listing, not yet adapted to a kernel."""

    name: str
    section: str
    """Where it is attached, e.g. ``"tp_btf/inet_sock_set_state"``."""
    code: bytes
    """Instructions of eight bytes, with zeros where something is filled in."""
    notes: tuple[tuple[int, Note], ...]
    """What is filled in, by the number of the instruction."""

    @property
    def maps(self) -> frozenset[str]:
        """The maps that it uses."""
        return frozenset(note.name for _, note in self.notes if isinstance(note, MapReference))

    @property
    def fields(self) -> tuple[Field, ...]:
        """The fields that it reads, each once."""
        return tuple(dict.fromkeys(note for _, note in self.notes if isinstance(note, Field)))


@attrs.frozen
class Listing:
    """All programs and maps."""

    source: str
    """SHA-256 of the C file that it was built from."""
    license: str
    """The licence that the kernel gets to know; tracing programs need a GPL-compatible one."""
    maps: dict[str, MapSpec]
    programs: dict[str, Program]


def parse_listing(text: str) -> Listing:
    """Read a listing.

    Raises:
        ProtocolError: It is damaged; the error names the line.
    """
    heads: dict[str, str] = {}
    maps: dict[str, MapSpec] = {}
    programs: dict[str, Program] = {}
    name = section = ""
    code = bytearray()
    notes: list[tuple[int, Note]] = []

    def finish() -> None:
        if name:
            programs[name] = Program(name, section, bytes(code), tuple(notes))

    for number, line in enumerate(text.splitlines(), 1):
        word, _, rest = line.partition(" ")
        try:
            if not line or word == "#":
                continue
            if word == "map":
                spec = _map(rest)
                maps[spec.name] = spec
            elif word == "program":
                finish()
                name, section = rest.split(" ")
                code, notes = bytearray(), []
            elif word in {"source", "license"}:
                heads[word] = rest
            else:
                note = _note(line.partition("@")[2])
                if note is not None:
                    notes.append((len(code) // 8, note))
                code += _instruction(line)
        except (ValueError, TypeError) as error:
            raise ProtocolError(f"line {number} of the eBPF listing: {error}", raw=line.encode()) from error
    finish()
    if heads.keys() != {"source", "license"} or not programs:
        raise ProtocolError("the eBPF listing is not whole")
    return Listing(heads["source"], heads["license"], maps, programs)


def _map(text: str) -> MapSpec:
    name, *pairs = text.split(" ")
    numbers = {key: int(value) for key, _, value in (pair.partition("=") for pair in pairs)}
    return MapSpec(name, **numbers)


def _instruction(line: str) -> bytes:
    slot = bytes.fromhex(line[:17])
    if len(slot) != 8:
        raise ValueError(f"{len(slot)} bytes are not an instruction")
    return slot


def _note(text: str) -> Note | None:
    if not text:
        return None
    word, name, *path = text.split(" ")
    if word == "map":
        return MapReference(name)
    if word == "constant":
        return Constant(name)
    return Field(FieldKind(word), name, tuple(int(step) if step.isdigit() else step for step in path))
