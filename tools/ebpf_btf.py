"""Cut a kernel's BTF down to what the eBPF programs look up, for the tests.

    python tools/ebpf_btf.py /sys/kernel/btf/vmlinux tests/ebpf/btf/6.18-x86_64.btf
    python tools/ebpf_btf.py vmlinuz-6.1.0-… tests/ebpf/btf/6.1-x86_64.btf

Structures keep their size, and of their members those on the way to a field that a program reads, at their places.
Pointers lead nowhere. The input is BTF, or a kernel image (bzImage with xz, zstd, lz4 or gzip, or an ELF file with a
section ``.BTF``).
"""

from __future__ import annotations

import argparse
import gzip
import lzma
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from nstat_async.ebpf import TypeKind, parse_listing  # noqa: E402
from nstat_async.ebpf._btf import Btf  # noqa: E402
from nstat_async.ebpf._relocate import hook_type  # noqa: E402

MAGIC = 0xEB9F
_ALIASES = {8, 9, 10, 11, 18}
_HEADER = struct.Struct("=HBBIIIII")
_THREE = struct.Struct("=III")


class Cutter:
    """Writes the types that are needed, with numbers of their own."""

    def __init__(self, whole: Btf, kept: Iterable[str]) -> None:
        self.whole = whole
        self.kept = {name.encode() for name in kept}
        self.numbers = {0: 0}
        self.strings = bytearray(b"\0")
        self.places = {b"": 0}
        self.types: list[bytes] = []

    def cut(self) -> bytes:
        """The small BTF."""
        for number in sorted(self.whole.ids.values()):
            self.add(number)
        types = b"".join(self.types)
        header = _HEADER.pack(MAGIC, 1, 0, _HEADER.size, 0, len(types), len(types), len(self.strings))
        return header + types + bytes(self.strings)

    def text(self, offset: int) -> bytes:
        """A name of the whole BTF."""
        strings = self.whole._strings
        return strings[offset : strings.index(0, offset)]

    def string(self, text: bytes) -> int:
        """Its place in the small one."""
        if text not in self.places:
            self.places[text] = len(self.strings)
            self.strings += text + b"\0"
        return self.places[text]

    def add(self, number: int) -> int:
        """The number of a type in the small BTF."""
        if number not in self.numbers:
            self.numbers[number] = len(self.types) + 1
            self.types.append(b"")
            self.types[self.numbers[number] - 1] = self.copy(number)
        return self.numbers[number]

    def copy(self, number: int) -> bytes:
        """A type with what it is made of."""
        at, kind, info, last = self.whole._type(number)
        data = self.whole._data
        name = self.string(self.text(_THREE.unpack_from(data, at)[0]))
        if kind in {TypeKind.POINTER, TypeKind.FUNCTION} or (kind == TypeKind.TYPEDEF and name in self.hooks()):
            return _THREE.pack(name, info, 0)
        if kind in _ALIASES:
            return _THREE.pack(name, info, self.add(last))
        if kind == TypeKind.ARRAY:
            element, _, count = _THREE.unpack_from(data, at + 12)
            return _THREE.pack(name, info, last) + _THREE.pack(self.add(element), 0, count)
        if kind not in {TypeKind.STRUCT, TypeKind.UNION}:
            return _THREE.pack(name, 1 << 24, last) + struct.pack("=I", 8 * last & 0xFF)  # a number of that size
        rows = [_THREE.unpack_from(data, at + 12 + 12 * row) for row in range(info & 0xFFFF)]
        rows = [row for row in rows if not row[0] or self.text(row[0]) in self.kept]
        members = b"".join(_THREE.pack(self.string(self.text(n)), self.add(t), bits) for n, t, bits in rows)
        return _THREE.pack(name, info & ~0xFFFF | len(rows), last) + members

    def hooks(self) -> set[int]:
        """Places of the names of hooks: what they point to is not needed."""
        return {place for text, place in self.places.items() if text.startswith(b"btf_trace_")}


def btf_of(data: bytes) -> bytes:
    """The BTF in a file.

    Raises:
        SystemExit: There is none.
    """
    if data[:2] == struct.pack("=H", MAGIC):
        return data
    if data[:4] != b"\x7fELF":
        data = unpacked(data)
    (start,) = struct.unpack_from("<Q", data, 40)
    size, number, names = struct.unpack_from("<HHH", data, 58)
    headers = [struct.unpack_from("<IIQQQQ", data, start + size * index) for index in range(number)]
    for header in headers:
        name = headers[names][4] + header[0]
        if data[name : name + 5] == b".BTF\0":
            return data[header[4] : header[4] + header[5]]
    raise SystemExit("no section .BTF")


def unpacked(image: bytes) -> bytes:
    """The ELF file in a compressed kernel image."""
    for magic, unpack in _FORMATS:
        at = image.find(magic)
        while at >= 0:
            try:
                data = unpack(image[at:])
            except (OSError, ValueError, EOFError, lzma.LZMAError, zlib.error):
                data = b""
            if data.startswith(b"\x7fELF"):
                return data
            at = image.find(magic, at + 1)
    raise SystemExit("no kernel in this file")


def unxz(data: bytes) -> bytes:
    """One xz stream; what follows it is ignored."""
    return lzma.LZMADecompressor().decompress(data)


def command(name: str, data: bytes) -> bytes:
    """By a command that Python has no module for; it complains about what follows the kernel."""
    if shutil.which(name) is None:
        return b""
    return subprocess.run([name, "-dc"], input=data, capture_output=True, check=False).stdout


def unzstd(data: bytes) -> bytes:
    """One zstd frame."""
    return command("zstd", data)


def unlz4(data: bytes) -> bytes:
    """lz4 in its old format."""
    return command("lz4", data)


_FORMATS = (
    (b"\xfd7zXZ\0", unxz),
    (b"\x28\xb5\x2f\xfd", unzstd),
    (b"\x02\x21\x4c\x18", unlz4),
    (b"\x1f\x8b\x08", gzip.decompress),
)


def main() -> None:
    """Cut one file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kernel", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    listing = parse_listing((ROOT / "nstat_async" / "ebpf" / "programs.bpf").read_text(encoding="ascii"))
    programs = listing.programs.values()
    fields = {field for program in programs for field in program.fields}
    hooks = {hook_type(program.section) for program in programs} - {None}
    whole = Btf(btf_of(arguments.kernel.read_bytes()), {(TypeKind.STRUCT, field.struct) for field in fields} | hooks)
    kept = {step for field in fields for step in field.path if isinstance(step, str)}
    arguments.output.write_bytes(Cutter(whole, kept).cut())


if __name__ == "__main__":
    main()
