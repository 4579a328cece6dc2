"""The joined reports are those of the message classes."""

import pytest

from nstat_async import Provider
from nstat_async.ntstat._constants import HEADER_SIZE
from nstat_async.ntstat._layouts import layout
from nstat_async.ntstat._messages import (
    ExtensionItem,
    SourceCounts,
    SourceDescription,
    SourceDetails,
    SourceExtendedUpdate,
    SourceUpdate,
)
from nstat_async.testing import EmulatedKernel
from nstat_async.testing._encoding import ReportEncoder, pack_items

LAYOUTS = range(1, 13)


@pytest.mark.parametrize("number", LAYOUTS)
def test_every_report_equals_the_one_of_its_class(number):
    shape, made = layout(number), ReportEncoder(layout(number))
    body = bytes(range(shape["nstat_counts"].size))
    tail = bytes(range(200))
    pairs = [
        (made.counts(9, body, 3, 4), SourceCounts(context=3, flags=4, srcref=9, counts=body)),
        (
            made.description(9, 2, tail, 3, 4),
            SourceDescription(context=3, flags=4, srcref=9, provider=2, descriptor=tail),
        ),
    ]
    if number >= 5:
        update = SourceUpdate(context=3, flags=4, srcref=9, provider=2, counts=body, descriptor=tail)
        pairs.append((made.update(9, 2, body, tail, context=3, flags=4), update))
    if number >= 12:
        detailed = bytes(i % 251 for i in range(448))
        details = SourceDetails(context=3, event_flags=1 << 41, srcref=9, provider=2, detailed_counts=detailed)
        pairs.append((made.update(9, 2, detailed, b"", kind=10008, context=3, events=1 << 41), details))
    for mine, theirs in pairs:
        assert mine == theirs.encode(shape), theirs.name


@pytest.mark.parametrize("number", LAYOUTS)
@pytest.mark.parametrize("structure", ["nstat_counts", "nstat_tcp_descriptor", "nstat_udp_descriptor"])
def test_a_packed_structure_decodes_to_what_was_packed(number, structure):
    codec = layout(number)[structure]
    values = {}
    for index, field in enumerate(codec.fields):
        if field.format.endswith("s"):
            values[field.name] = bytes([index + 1] * field.size)
        else:
            values[field.name] = index + 1 if field.count == 1 else (index + 1,) * field.count
    packed = codec.pack({**values, "of another release": 1})
    assert len(packed) == codec.size
    assert codec.decode(packed) == values


def test_overlapping_members_of_a_union_can_be_set():
    codec = layout(11)["nstat_ifnet_descriptor"]
    packed = codec.pack({"link_status.u.wifi.config_frequency": 5180, "name": b"en0"})
    assert codec.read("link_status.u.wifi.config_frequency", packed) == 5180


def test_items_are_padded_and_a_failed_one_becomes_filler():
    item = ExtensionItem(2, 5, b"hello")
    message = SourceExtendedUpdate(srcref=1, provider=2, counts=bytes(112), descriptor=bytes(344), items=(item,))
    tail = message.encode(layout(11))[-16:]
    assert pack_items([(2, b"hello", 5)], padded=False) == tail
    assert pack_items([(2, b"hello", 5)], padded=True)[4:8] == (8).to_bytes(4, "little")
    broken = pack_items([(2, None, 5), (6, bytes(32), 32)], padded=False)
    assert len(broken) == 16 + 40
    assert broken[:8] == (0).to_bytes(4, "little") + (48).to_bytes(4, "little")


def test_up_to_mavericks_the_unused_header_word_holds_anything():
    kernel = EmulatedKernel("xnu-2422.115.4", seed=3)
    client = kernel.connect()
    for _ in range(4):
        kernel.open_tcp()
    from nstat_async.ntstat._messages import AddAllSources

    client.send(AddAllSources(provider=2, context=1).encode(kernel.release.layout))
    words = {client.receive()[12:HEADER_SIZE] for _ in range(5)}
    assert len(words) == 5
    assert kernel.provider_number(Provider.TCP) == 2
