"""The compiled messages are those of the message classes."""

import pytest

from nstat_async import Provider
from nstat_async.ntstat._constants import HEADER_SIZE
from nstat_async.ntstat._layouts import layout
from nstat_async.ntstat._messages import (
    Error,
    ExtensionItem,
    SourceAdded,
    SourceCounts,
    SourceDescription,
    SourceExtendedUpdate,
    SourceRemoved,
    SourceUpdate,
    Success,
)
from nstat_async.testing import EmulatedKernel
from nstat_async.testing._wire import Packer, pack_items, wire

LAYOUTS = range(1, 13)


@pytest.mark.parametrize("number", LAYOUTS)
def test_every_message_equals_the_one_of_its_class(number):
    shape, made = layout(number), wire(layout(number))
    body = bytes(range(made.counts.size))
    tail = bytes(range(200))
    pairs = [
        (made.success(7, 2), Success(context=7, flags=2)),
        (made.error(7, 55, b"request"), Error(context=7, error=55, request=b"request")),
        (made.added(9, 2, 5), SourceAdded(context=5, srcref=9, provider=2)),
        (made.removed(9, 8), SourceRemoved(flags=8, srcref=9)),
        (made.source_counts(9, body, 3, 4), SourceCounts(context=3, flags=4, srcref=9, counts=body)),
        (
            made.source_description(9, 2, tail, 3, 4),
            SourceDescription(context=3, flags=4, srcref=9, provider=2, descriptor=tail),
        ),
    ]
    if number >= 5:
        update = SourceUpdate(context=3, flags=4, srcref=9, provider=2, counts=body, descriptor=tail)
        pairs.append((made.source_update(9, 2, body, tail, 3, 4), update))
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
    packed = Packer(codec)(values)
    assert len(packed) == codec.size
    assert codec.decode(packed) == values


def test_overlapping_members_of_a_union_can_be_set():
    codec = layout(11)["nstat_ifnet_descriptor"]
    packed = Packer(codec)({"link_status.u.wifi.config_frequency": 5180, "name": b"en0"})
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
