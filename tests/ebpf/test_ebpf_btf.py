"""Fields by name: stored BTF of several kernels, damage, and what is patched where."""

from __future__ import annotations

import os
import struct
from importlib import resources
from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nstat_async._errors import ProtocolError
from nstat_async.ebpf import (
    POISON,
    Btf,
    Field,
    FieldKind,
    Kernel,
    Program,
    TypeKind,
    missing_fields,
    parse_listing,
    patch,
    resolve,
)

LISTING = parse_listing(resources.files("nstat_async.ebpf").joinpath("programs.bpf").read_text(encoding="ascii"))
STORED = {path.stem: path.read_bytes() for path in sorted((Path(__file__).parent / "btf").glob("*.btf"))}
NEWEST = STORED["6.18-x86_64"]
LIVING = Path("/sys/kernel/btf/vmlinux")


def field(struct_name, *path, kind=FieldKind.OFFSET):
    return Field(kind, struct_name, path)


@pytest.mark.parametrize("name", STORED)
def test_every_field_is_found(name):
    """Each stored kernel has all fields that its hooks need, at plausible places."""
    kernel = resolve(LISTING, STORED[name])
    for program in LISTING.programs.values():
        missing = set(missing_fields(program, kernel))
        assert not missing, program.name
    fields = kernel.fields
    # struct sock_common begins with the pair of addresses, ports and family: so in every kernel (include/net/sock.h)
    assert [fields[field("sock", "__sk_common", member)] for member in ("skc_daddr", "skc_rcv_saddr", "skc_dport")] == [
        0,
        4,
        12,
    ]
    assert fields[field("sock", "__sk_common", "skc_num")] == 14
    assert fields[field("sock", "__sk_common", "skc_family")] == 16
    assert fields[field("sock", "sk_rx_dst_ifindex", kind=FieldKind.EXISTS)] == 1


def test_what_a_kernel_can_be_attached_to():
    """The length hooks came with 6.3."""
    hooks = {name: set(resolve(LISTING, data).hooks) for name, data in STORED.items()}
    lengths = {"tp_btf/sock_send_length", "tp_btf/sock_recv_length"}
    for name, found in hooks.items():
        version = tuple(map(int, name.split("-")[0].split(".")))
        assert {"tp_btf/inet_sock_set_state", "iter/task_file"} <= found
        assert (lengths <= found) == (version >= (6, 3))
        assert lengths & found in (lengths, set())


def test_numbers_of_the_newest_kernel():
    """As another reader (pahole) of the same kernel says."""
    fields = resolve(LISTING, NEWEST).fields
    assert fields[field("net", "net_cookie")] == 4160
    assert fields[field("net", "ns", "inum")] == 176
    assert fields[field("sock", "sk_protocol")] == 532
    assert fields[field("sock", "sk_type")] == 534
    assert fields[field("task_struct", "comm", 0)] == 1752
    assert fields[field("tcp_sock", "bytes_sent")] == 1544
    assert fields[field("sock", "sk_cgrp_data", "cgroup")] == 672  # in a union without a name


@pytest.mark.skipif(not LIVING.exists() or not os.access(LIVING, os.R_OK), reason="this kernel has no BTF")
def test_every_structure_is_found_in_the_btf_of_the_running_kernel():
    """Every structure is found in the whole BTF of a living kernel, and its first structures are where they always are."""
    kernel = resolve(LISTING, LIVING.read_bytes())
    assert kernel.fields[field("sock", "__sk_common", "skc_family")] == 16
    assert "tp_btf/inet_sock_set_state" in kernel.hooks


def test_a_size_counts_arrays_and_an_absent_field_is_none():
    """A size counts arrays and goes through typedefs; what is not there is `None`, and 0 for "exists"."""
    types = Btf(NEWEST, {(TypeKind.STRUCT, "task_struct"), (TypeKind.STRUCT, "sock"), (TypeKind.STRUCT, "nobody")})
    assert types.field("task_struct", ["comm"]) == (1752, 16)
    assert types.field("task_struct", ["comm", 3]) == (1755, 1)
    assert types.field("sock", ["__sk_common", "skc_cookie", "counter"]) == (88, 8)
    assert types.field("sock", ["__sk_common", "skc_daddr", "further"]) is None
    assert types.field("sock", ["nothing"]) is None
    assert types.field("sock", ["sk_type", 0]) is None
    assert types.field("nobody", []) is None


def test_an_offset_goes_into_its_instruction_and_an_absent_field_becomes_a_call_that_no_kernel_has():
    """An offset goes into the instruction's own field, an absent one becomes a call that no kernel has."""
    program = LISTING.programs["sent"]
    kernel = resolve(LISTING, NEWEST)
    maps = {name: 100 + index for index, name in enumerate(LISTING.maps)}
    code = patch(program, kernel, maps, {"namespace": 0x1122334455667788, "options": 3})
    absent = field("sock", "sk_type")
    poisoned = patch(
        program,
        attrs.evolve(kernel, fields={**kernel.fields, absent: None}),
        maps,
        dict.fromkeys(("namespace", "options"), 0),
    )
    seen = set()
    for number, note in program.notes:
        opcode, registers, offset, immediate = struct.unpack_from("=BBhi", code, 8 * number)
        if note == absent:
            assert offset == kernel.fields[absent]
            assert struct.unpack_from("=BBhi", poisoned, 8 * number) == (0x85, 0, 0, POISON)
            seen.add("field")
        elif getattr(note, "name", "") == "namespace":
            assert (immediate, struct.unpack_from("=i", code, 8 * number + 12)[0]) == (0x55667788, 0x11223344)
            seen.add("constant")
        elif getattr(note, "name", "") == "flows":
            assert (opcode, registers >> 4, immediate) == (0x18, 1, maps["flows"])
            seen.add("map")
    assert seen == {"field", "constant", "map"}
    assert len(code) == len(program.code)


def test_an_offset_that_does_not_fit():
    """It is an error with the name of the field, not a wrong instruction."""
    program = LISTING.programs["sent"]
    kernel = Kernel(dict.fromkeys(program.fields, 1 << 20), {})
    with pytest.raises(ProtocolError, match=r"instruction \d+ of sent: sock"):
        patch(program, kernel, dict.fromkeys(program.maps, 3), {"namespace": 0, "options": 0})


@pytest.mark.parametrize("data", [b"", b"\x9f\xeb", NEWEST[:100], b"\xeb\x9f" + NEWEST[2:], NEWEST[:-1500]])
def test_what_is_cut_or_of_the_other_byte_order_is_refused(data):
    """Cut or of the other byte order: a ProtocolError."""
    with pytest.raises(ProtocolError):
        resolve(LISTING, data)


@given(st.integers(0, len(NEWEST) - 1), st.binary(min_size=1, max_size=8))
def test_damage_is_a_protocol_error_at_most(at, junk):
    """Whatever bytes are wrong: fields are found or not, or it is a ProtocolError, and it ends."""
    data = NEWEST[:at] + junk + NEWEST[at + len(junk) :]
    try:
        kernel = resolve(LISTING, data)
    except ProtocolError:
        return
    assert kernel.fields.keys() == resolve(LISTING, NEWEST).fields.keys()


def built(*types, strings):
    """A BTF of these types, each given as its words."""
    text = b"\0" + b"".join(name.encode() + b"\0" for name in strings)
    body = b"".join(struct.pack(f"={len(words)}I", *words) for words in types)
    return struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(body), len(body), len(text)) + body + text


def test_bit_fields_and_arrays_of_structures():
    """The upper byte of a bit field's place is its width; an index counts whole elements; qualifiers are stepped over."""
    strings = ["s", "bits", "list", "word", "inner"]
    places = {name: sum(len(s) + 1 for s in strings[:i]) + 1 for i, name in enumerate(strings)}
    integer = (places["word"], 1 << 24, 4, 32)  # type 1
    inner = (places["inner"], 4 << 24 | 1, 12, places["word"], 1, 64)  # type 2: a structure of twelve bytes
    array = (0, 3 << 24, 0, 5, 1, 4)  # type 3: four of type 5
    outer_info = 1 << 31 | 4 << 24 | 2
    outer = (places["s"], outer_info, 64, places["bits"], 1, 3 << 24 | 40, places["list"], 3, 64)  # type 4
    const = (0, 10 << 24, 2)  # type 5: const inner
    types = Btf(built(integer, inner, array, outer, const, strings=strings), {(TypeKind.STRUCT, "s")})
    assert types.field("s", ["bits"]) == (5, 4)
    assert types.field("s", ["list"]) == (8, 48)
    assert types.field("s", ["list", 2, "word"]) == (8 + 24 + 8, 4)


def test_a_type_that_is_an_alias_of_itself():
    """It is damage, and no endless walk."""
    loop = (0, 10 << 24, 1)
    outer = (1, 4 << 24 | 1, 8, 3, 1, 0)
    with pytest.raises(ProtocolError, match="alias"):
        Btf(built(loop, outer, strings=["s", "m"]), {(TypeKind.STRUCT, "s")}).field("s", ["m"])


def test_loads_and_stores_have_a_place_for_an_offset_and_other_instructions_take_it_as_their_number():
    """Loads and stores have a place of their own for it; other instructions take it as their number."""
    wanted = Field(FieldKind.OFFSET, "s", ("m",))
    code = b"".join(struct.pack("=BBhi", opcode, 0, 0, 0) for opcode in (0x61, 0x62, 0x63, 0xB7))
    program = Program("p", "tp_btf/x", code, tuple((index, wanted) for index in range(4)))
    patched = patch(program, Kernel({wanted: 40}, {}), {}, {})
    assert [row[2:] for row in struct.iter_unpack("=BBhi", patched)] == [(40, 0), (40, 0), (40, 0), (0, 40)]
