"""The listing of the programs: it is what the source compiles to, it only looks, and damage is named."""

from __future__ import annotations

import hashlib
import re
import shutil
import struct
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest
from instructions import UNKNOWN, returned_values

from nstat_async._errors import ProtocolError
from nstat_async.ebpf import (
    FLOW,
    FLOW_KEY,
    NEEDS,
    OWNER,
    PEER,
    PEER_KEY,
    RECORD,
    RECORD_SIZE,
    Constant,
    Field,
    FieldKind,
    MapReference,
    in_cgroup,
    parse_listing,
)

PACKAGE = resources.files("nstat_async.ebpf")
TEXT = PACKAGE.joinpath("programs.bpf").read_text(encoding="ascii")
SOURCE = PACKAGE.joinpath("programs.c").read_bytes()
LISTING = parse_listing(TEXT)
TOOL = Path(__file__).parents[2] / "tools" / "ebpf_table.py"
RESERVE, SEQ_WRITE = 131, 127


def test_it_belongs_to_the_source():
    """Whoever changes the source builds the listing again."""
    assert LISTING.source == hashlib.sha256(SOURCE).hexdigest()


@pytest.mark.skipif(not shutil.which("clang") or not TOOL.exists(), reason="needs clang and the source tree")
def test_it_is_what_the_source_compiles_to():
    """Built again with the pinned clang, byte by byte."""
    version = subprocess.run(["clang", "--version"], capture_output=True, text=True, check=True).stdout
    if "version 14." not in version:
        pytest.skip("another clang than the pinned one makes other instructions")
    done = subprocess.run([sys.executable, str(TOOL), "--check"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("program", LISTING.programs.values(), ids=lambda program: program.name)
def test_a_program_only_looks(program):
    """Whatever happens in it: in a cgroup it returns 1 ("let it pass"), elsewhere 0."""
    assert returned_values(program.code) == {1 if in_cgroup(program.section) else 0}


def test_the_walk_would_notice():
    """A program that drops what it does not like, and one that returns what it read, are found."""
    move, leave = "b7000000{:08x}", "9500000000000000"
    one, zero = (move.format(int.from_bytes(struct.pack("<i", n), "big")) for n in (1, 0))
    jump_over_one = "1501010000000000"
    load = "7910000000000000"
    assert returned_values(bytes.fromhex(one + leave)) == {1}
    assert returned_values(bytes.fromhex(one + jump_over_one + zero + leave)) == {0, 1}
    assert returned_values(bytes.fromhex(load + leave)) == {UNKNOWN}
    assert returned_values(bytes.fromhex(one + "8500000005000000" + leave)) == {UNKNOWN}
    with pytest.raises(AssertionError):
        returned_values(bytes.fromhex(one))


def constants_before(program, call):
    """What register 2 and 3 were set to last before each call of a helper."""
    registers = {}
    for opcode, target, _, immediate in struct.iter_unpack("<BBhi", program.code):
        if opcode == 0xB7:
            registers[target & 15] = immediate
        if opcode == 0x85 and immediate == call:
            yield registers[2], registers[3]


def test_sizes_are_those_of_the_decoder():
    """Maps, ring records and iterator rows have the sizes that the layouts here have."""
    sizes = {name: (spec.key, spec.value) for name, spec in LISTING.maps.items()}
    assert sizes["flows"] == (FLOW_KEY.size, FLOW.size)
    assert sizes["peers"] == (PEER_KEY.size, PEER.size)
    reserved = [two for program in LISTING.programs.values() for two, _ in constants_before(program, RESERVE)]
    assert len(reserved) > 5
    assert set(reserved) == {RECORD_SIZE}
    assert RECORD.size == RECORD_SIZE + 8
    assert [three for _, three in constants_before(LISTING.programs["owners"], SEQ_WRITE)] == [OWNER.size]


C_NAMES = {"page": None, "header": None, "time": "time", "pid": "facts.who.tgid", "last_pid": "facts.last_tgid"}


@pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")
@pytest.mark.parametrize(("struct_name", "row"), [("record", "Record"), ("flow", "FlowRow"), ("owner", "OwnerRow")])
def test_offsets_are_those_of_the_source(tmp_path, struct_name, row):
    """Another compiler's offsetof of each field is where the decoder reads it."""
    from nstat_async import ebpf

    rows = getattr(ebpf, row)
    layout = {"record": RECORD, "flow": FLOW, "owner": OWNER}[struct_name]
    skipped = {"record": ("header", "page"), "flow": ("cookie",), "owner": ()}[struct_name]
    names = [name for name in rows._fields if name not in skipped]
    text = SOURCE.decode()
    body = text[text.index("struct who {") : text.index("struct peer_key {")]
    types = (
        "typedef unsigned char u8; typedef unsigned short u16; typedef unsigned u32; typedef unsigned long long u64;"
    )
    prints = "".join(
        f'printf("%zu\\n", offsetof(struct {struct_name}, {c_name(struct_name, name)}));' for name in names
    )
    source = f"#include <stddef.h>\n#include <stdio.h>\n{types}\n{body}\nint main(void) {{ {prints} return 0; }}\n"
    (tmp_path / "offsets.c").write_text(source)
    subprocess.run(["cc", "-o", str(tmp_path / "offsets"), str(tmp_path / "offsets.c")], check=True)
    output = subprocess.run([str(tmp_path / "offsets")], capture_output=True, text=True, check=True).stdout
    offsets = [int(line) for line in output.split()]
    header = 8 if struct_name == "record" else 0
    assert offsets == [offset - header for offset in field_offsets(layout)[len(names) * -1 :]]


def c_name(struct_name, name):
    if name in {"cookie", "inode", "fd", "first", "time"}:
        return name
    if name.startswith(("tx_", "rx_")):
        return f"counts.{name}"
    return {
        "start": "facts.who.start",
        "pid": "facts.who.tgid",
        "tid": "facts.who.tid",
        "comm": "facts.who.comm",
        "last_pid": "facts.last_tgid",
    }.get(name, f"facts.{name}")


def field_offsets(layout):
    """Where each value of a format begins."""
    offsets, at = [], 0
    for count, letter in re.findall(r"(\d*)([A-Za-z])", layout.format.lstrip("=")):
        size = struct.calcsize("=" + letter)
        if letter == "s":
            offsets.append(at)
            at += int(count or 1)
        else:
            for _ in range(int(count or 1)):
                offsets.append(at)
                at += size
    assert at == layout.size
    return offsets


def test_what_is_filled_in():
    """Maps, constants and fields are read with the program that uses them."""
    sent = LISTING.programs["sent"]
    assert sent.section == "tp_btf/sock_send_length"
    assert {"flows", "ring", "statistics"} <= sent.maps
    assert Field(FieldKind.OFFSET, "sock", ("__sk_common", "skc_family")) in sent.fields
    assert str(Field(FieldKind.OFFSET, "sock", ("__sk_common", "skc_family"))) == "sock.__sk_common.skc_family"
    notes = [note for program in LISTING.programs.values() for _, note in program.notes]
    assert {note.name for note in notes if isinstance(note, Constant)} == {"namespace", "options"}
    assert {note.name for note in notes if isinstance(note, MapReference)} == LISTING.maps.keys()
    assert LISTING.programs.keys() == NEEDS.keys()
    assert LISTING.license == "Dual MIT/GPL"


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("79180800 0000", "6 bytes"),
        ("nothing at all", "non-hexadecimal"),
        ("79180800 00000000  x  @offest sock a", "offest"),
        ("map flows type=many", "invalid literal"),
        ("map flows type=1", "max_entries"),
        ("program alone", "unpack"),
    ],
)
def test_damage_is_named_by_its_line(line, text):
    """A damaged listing is a ProtocolError, never anything else."""
    with pytest.raises(ProtocolError, match=text) as caught:
        parse_listing(TEXT + line + "\n")
    assert f"line {TEXT.count(chr(10)) + 1} " in str(caught.value)


@pytest.mark.parametrize("text", ["", "source x\n", "source x\nlicense y\n", TEXT.replace("license", "# license", 1)])
def test_a_listing_that_is_not_whole(text):
    """What has no programs or no licence is refused."""
    with pytest.raises(ProtocolError, match="not whole"):
        parse_listing(text)
