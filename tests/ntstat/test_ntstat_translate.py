"""What the translator makes of values on the wire, and how much it keeps of them."""

from __future__ import annotations

import socket

import pytest

from nstat_async.ntstat import InterfaceProperty, Kernel, _translate
from nstat_async.ntstat._constants import SysinfoFlag
from nstat_async.ntstat._translate import Translator, decode_endpoint, decode_sysinfo, decode_uuid

KERNEL = Kernel.parse("xnu-11417.121.6")


@pytest.fixture
def translator():
    return Translator(KERNEL, asks_paths=True)


def sockaddr_in6(address, scope=0):
    return bytes([28, 30]) + (443).to_bytes(2, "big") + bytes(4) + address + scope.to_bytes(4, "little")


def owner(pid, **fields):
    return {"pid": pid, "upid": 70 + pid, "pname": b"curl\0", **fields}


@pytest.mark.parametrize(
    ("address", "scope", "text"),
    [
        ("fe80:4::1", 4, "fe80::1"),
        ("fe80:200::1", 512, "fe80::1"),
        ("febf:4::1", 4, "febf::1"),
        ("fec0:4::1", None, "fec0:4::1"),
        ("fe80::1", None, "fe80::1"),
        ("fd80:4::1", None, "fd80:4::1"),
    ],
)
def test_the_scope_inside_a_link_local_address_is_not_part_of_it(address, scope, text):
    endpoint = decode_endpoint(sockaddr_in6(socket.inet_pton(socket.AF_INET6, address)))
    assert (endpoint.address, endpoint.scope_id) == (text, scope)


def test_the_scope_beside_an_address_counts_for_more_than_the_one_inside():
    endpoint = decode_endpoint(sockaddr_in6(socket.inet_pton(socket.AF_INET6, "fe80:4::1"), scope=5))
    assert (endpoint.address, endpoint.scope_id) == ("fe80::1", 5)


def test_a_uuid_of_zeros_is_none():
    assert (decode_uuid(bytes(16)), decode_uuid(None)) == (None, None)
    assert decode_uuid(bytes(15) + b"\1").int == 1


@pytest.mark.parametrize(("persona", "known"), [(0, None), (0xFFFFFFFF, None), (1, 1), (501, 501)])
def test_a_persona_that_the_kernel_has_not_is_none(translator, persona, known):
    assert translator.process(owner(7, persona_id=persona)).persona_id == known


def test_without_a_timebase_a_tick_is_a_nanosecond():
    assert Translator(KERNEL).nanoseconds(7) == 7
    assert Translator(KERNEL, (125, 3)).nanoseconds(6) == 250


def test_flows_share_what_is_equal_and_only_so_much_is_kept(translator, monkeypatch):
    monkeypatch.setattr(_translate, "_CACHED", 3)
    made = [
        (translator.shared, lambda number: (bytes([10, 0, 0, number]),), translator._packed),
        (translator.process, lambda number: (owner(number),), translator._processes),
        (translator.interface, lambda number: (number, int(InterfaceProperty.WIFI)), translator._interfaces),
    ]
    for make, about, kept in made:
        first = make(*about(1))
        make(*about(2))
        assert make(*about(1)) is first
        for number in range(3, 12):
            make(*about(number))
            assert len(kept) <= 3
        assert len(kept) == 2, "it is full with 3, and begins anew"
    assert len(translator.unasked) == 3


@pytest.mark.parametrize(
    ("fields", "known"),
    [
        ({"pid": 0}, False),
        ({"pid": 0, "pname": b"kernel_task\0"}, True),
        ({"pid": 0, "upid": 1}, True),
        ({"pid": 7}, True),
        ({"pname": b"curl\0"}, False),
    ],
)
def test_an_owner_needs_a_pid_and_that_of_the_kernel_a_name(translator, fields, known):
    assert (translator.process(fields) is not None) is known


@pytest.mark.parametrize(
    ("flags", "value"),
    [
        (SysinfoFlag.SCALAR, 5),
        (SysinfoFlag.DISTRIBUTION, 0.5),
        (SysinfoFlag.STRING, "en0"),
        (0, None),
    ],
)
def test_the_flags_of_system_information_say_what_it_is(flags, value):
    fields = {"u.nstat_sysinfo_scalar": 5, "u.nstat_sysinfo_distribution": 0.5, "u.nstat_sysinfo_string": b"en0\0x"}
    assert decode_sysinfo({"nstat_sysinfo_flags": int(flags), **fields}) == value


def test_system_information_that_is_no_number_is_none():
    fields = {"nstat_sysinfo_flags": int(SysinfoFlag.DISTRIBUTION), "u.nstat_sysinfo_distribution": float("nan")}
    assert decode_sysinfo(fields) is None
