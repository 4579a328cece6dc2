"""Build `nstat_async/ebpf/programs.bpf` from `programs.c`: at development time only, with the pinned clang.

    python tools/ebpf_table.py            # write the listing
    python tools/ebpf_table.py --check    # build it again and compare; exit status 1 if it differs

The listing is what the library loads. It has one instruction a line with its disassembly, and beside it what the
loader fills in: a map, a constant, or the offset, size or existence of a field that is looked up by name in the
running kernel's BTF. The formats read here are ELF (``elf(5)``), BTF and its extension
(``Documentation/bpf/btf.rst``) and the relocations of ``Documentation/bpf/llvm_reloc.rst``.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "nstat_async" / "ebpf"
SOURCE = PACKAGE / "programs.c"
LISTING = PACKAGE / "programs.bpf"
CLANG = "14"
"""Other versions make other, equally good instructions; one of them is compared."""
CONSTANT = 0x4E535441_54430000
"""What stands in the source for constant number n is this plus n."""
CONSTANTS = ("namespace", "options")
FIELD_KINDS = {0: "offset", 1: "size", 2: "exists"}
"""``enum bpf_core_relo_kind``: the three that the source uses."""

_LABEL = re.compile(r" <[\w.]+>$")
_INT, _PTR, _ARRAY, _STRUCT, _UNION, _VAR, _DATASEC = 1, 2, 3, 4, 5, 14, 15
_ALIASES = {8, 9, 10, 11, 18}
"""Typedefs and qualifiers."""


def tool(name: str) -> str | None:
    """The path of a tool of the pinned version."""
    path = shutil.which(f"{name}-{CLANG}") or shutil.which(name)
    if path is None:
        return None
    said = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
    return path if f"version {CLANG}." in said else None


def text_at(data: bytes, offset: int) -> str:
    """A string of a string table."""
    return data[offset : data.index(b"\0", offset)].decode()


class Sections:
    """The sections and symbols of an object file."""

    def __init__(self, data: bytes) -> None:
        (start,) = struct.unpack_from("<Q", data, 40)
        size, number, names = struct.unpack_from("<HHH", data, 58)
        headers = [struct.unpack_from("<IIQQQQIIQQ", data, start + i * size) for i in range(number)]
        self.bodies = [data[h[4] : h[4] + h[5]] if h[1] != 8 else b"" for h in headers]
        self.names = [text_at(self.bodies[names], h[0]) for h in headers]
        self.relocations = {h[7]: self.bodies[i] for i, h in enumerate(headers) if h[1] == 9}
        table = next(i for i, h in enumerate(headers) if h[1] == 2)
        strings = self.bodies[headers[table][6]]
        self.symbols = [
            (text_at(strings, name), info & 15, section)
            for name, info, _, section, _, _ in struct.iter_unpack("<IBBHQQ", self.bodies[table])
        ]

    def body(self, name: str) -> bytes:
        """The bytes of a section."""
        return self.bodies[self.names.index(name)]

    def programs(self) -> Iterator[tuple[str, int]]:
        """Each program with the number of its section, in the order of the source."""
        functions = {section: name for name, kind, section in self.symbols if kind == 2}
        for section in sorted(functions):
            yield functions[section], section


class Types:
    """The types that the object file declares for itself."""

    def __init__(self, data: bytes) -> None:
        _, _, _, header, types, length, strings, size = struct.unpack_from("<HBBIIIII", data)
        self.strings = data[header + strings : header + strings + size]
        self.all: list[tuple[int, str, int, list[tuple[int, int, int]]]] = [(0, "", 0, [])]
        at, end = header + types, header + types + length
        while at < end:
            name, info, size = struct.unpack_from("<III", data, at)
            kind, count = info >> 24 & 31, info & 0xFFFF
            at += 12
            rows = count if kind in {_STRUCT, _UNION, _DATASEC} else int(kind == _ARRAY)
            members = [struct.unpack_from("<III", data, at + 12 * i) for i in range(rows)]
            at += {_INT: 4, 6: 8 * count, 13: 8 * count, _VAR: 4, 17: 4, 19: 12 * count}.get(kind, 12 * rows)
            self.all.append((kind, text_at(self.strings, name), size, members))

    def strip(self, number: int) -> int:
        """The type behind typedefs and qualifiers."""
        while self.all[number][0] in _ALIASES:
            number = self.all[number][2]
        return number

    def size(self, number: int) -> int:
        """Size of a type in bytes."""
        kind, _, size, members = self.all[self.strip(number)]
        if kind == _ARRAY:
            return members[0][2] * self.size(members[0][0])
        return 8 if kind == _PTR else size

    def maps(self) -> Iterator[tuple[str, dict[str, int]]]:
        """Each map with its numbers: pointers to arrays are numbers, other pointers are types."""
        section = next(t for t in self.all if t[0] == _DATASEC and t[1] == ".maps")
        for variable, _, _ in section[3]:
            _, name, target, _ = self.all[variable]
            numbers = {}
            for offset, member, _ in self.all[self.strip(target)][3]:
                kind, _, _, rows = pointed = self.all[self.strip(self.all[self.strip(member)][2])]
                value = rows[0][2] if kind == _ARRAY else self.size(self.all.index(pointed))
                numbers[text_at(self.strings, offset)] = value
            yield name, numbers

    def path(self, root: int, accessors: str) -> str:
        """A field as ``struct member member…``; array indices are numbers."""
        at = self.strip(root)
        steps = [self.all[at][1]]
        for accessor in map(int, accessors.split(":")[1:]):
            kind, _, _, members = self.all[at]
            if kind == _ARRAY:
                steps.append(str(accessor))
                at = self.strip(members[0][0])
            else:
                name, member, _ = members[accessor]
                steps.append(text_at(self.strings, name))
                at = self.strip(member)
        return " ".join(steps)


def field_relocations(data: bytes, types: Types) -> dict[str, dict[int, str]]:
    """By section and instruction: what is looked up in the kernel's BTF (``struct bpf_core_relo``)."""
    header = struct.unpack_from("<HBBIIIIIII", data)
    at = header[3] + header[8]
    end = at + header[9]
    (size,) = struct.unpack_from("<I", data, at)
    at += 4
    found: dict[str, dict[int, str]] = {}
    while at < end:
        section, number = struct.unpack_from("<II", data, at)
        at += 8
        for _ in range(number):
            offset, root, accessors, kind = struct.unpack_from("<IIII", data, at)
            note = f"{FIELD_KINDS[kind]} {types.path(root, text_at(types.strings, accessors))}"
            found.setdefault(text_at(types.strings, section), {})[offset // 8] = note
            at += size
    return found


def disassembly(object_file: Path) -> dict[str, list[str]]:
    """The text of each instruction, by section; jumps without the name of their target."""
    command = [tool("llvm-objdump") or "llvm-objdump", "-d", "--no-show-raw-insn", str(object_file)]
    lines: dict[str, list[str]] = {}
    section = ""
    for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines():
        if line.startswith("Disassembly of section "):
            section = line.removeprefix("Disassembly of section ").rstrip(":")
            continue
        number, separator, text = line.partition(":\t")
        if separator and number.strip().isdigit():
            at = int(number)
            rows = lines.setdefault(section, [])
            rows.extend("" for _ in range(at - len(rows)))
            rows.append(_LABEL.sub("", text).strip())
    return lines


def constant_of(first: bytes, second: bytes) -> str | None:
    """The note of an instruction that loads a constant of the loader's."""
    value = struct.unpack("<I", first[4:])[0] | struct.unpack("<I", second[4:])[0] << 32
    number = value - CONSTANT
    return f"constant {CONSTANTS[number]}" if first[0] == 0x18 and 0 <= number < len(CONSTANTS) else None


def program_lines(code: bytes, texts: list[str], notes: dict[int, str]) -> Iterator[str]:
    """One instruction a line: its bytes, its text, and what the loader fills in."""
    slots = [code[at : at + 8] for at in range(0, len(code), 8)]
    texts = texts + [""] * (len(slots) - len(texts))
    for at, slot in enumerate(slots):
        note = notes.get(at)
        if note is None and slot[0] == 0x18:
            note = constant_of(slot, slots[at + 1])
        text = f"{slot[:4].hex()} {slot[4:].hex()}  {texts[at]}"
        yield (f"{text}  @{note}" if note else text).rstrip()


def listing(data: bytes, texts: dict[str, list[str]], source: bytes) -> str:
    """The whole listing."""
    sections = Sections(data)
    types = Types(sections.body(".BTF"))
    fields = field_relocations(sections.body(".BTF.ext"), types)
    lines = [
        "# Built from programs.c by tools/ebpf_table.py: do not edit.",
        f"source {hashlib.sha256(source).hexdigest()}",
        f"license {sections.body('license').rstrip(bytes(1)).decode()}",
    ]
    for name, numbers in types.maps():
        lines.append(" ".join(["map", name, *(f"{key}={value}" for key, value in numbers.items())]))
    for name, number in sections.programs():
        section = sections.names[number]
        notes = dict(fields.get(section, {}))
        for offset, info in struct.iter_unpack("<QQ", sections.relocations.get(number, b"")):
            notes[offset // 8] = f"map {sections.symbols[info >> 32][0]}"
        lines += ["", f"program {name} {section.split('@')[0]}"]
        lines += program_lines(sections.bodies[number], texts[section], notes)
    return "\n".join(lines) + "\n"


def build() -> str:
    """Compile the source and return its listing."""
    clang = tool("clang")
    if clang is None or tool("llvm-objdump") is None:
        raise SystemExit(f"clang {CLANG} and llvm-objdump {CLANG} are needed (Debian 12: apt-get install clang llvm)")
    with tempfile.TemporaryDirectory() as directory:
        output = Path(directory) / "programs.o"
        options = ["-target", "bpf", "-mcpu=v2", "-O2", "-g", "-Wall", "-Werror"]
        subprocess.run([clang, *options, "-c", SOURCE.name, "-o", str(output)], check=True, cwd=PACKAGE)
        return listing(output.read_bytes(), disassembly(output), SOURCE.read_bytes())


def main() -> int:
    """Write the listing, or compare it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the committed listing instead of writing it")
    arguments = parser.parse_args()
    text = build()
    if not arguments.check:
        LISTING.write_text(text, encoding="ascii")
        return 0
    if LISTING.read_text(encoding="ascii") == text:
        return 0
    print(f"{LISTING} is not what {SOURCE.name} compiles to: run tools/ebpf_table.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
