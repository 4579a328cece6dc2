"""Interfaces and addresses that change, and the flows that go over them."""

from __future__ import annotations

import errno

from sockdiag_fakes import PEER, FakeSocket, kinds, traffic

from nstat_async._events import FlowAdded, FlowUpdated, LossCause
from nstat_async._model import InterfaceKind
from nstat_async.sockdiag import AddressMessage, LinkKindsRequest, LinkMessage, RouteMessage, SocketState
from nstat_async.sockdiag._messages import encode_done


def test_a_renamed_interface_is_an_update(kernel):
    """Flows show the new name after the next poll, and what the host said of the device stays."""
    kernel.sockets[1] = FakeSocket(1, bytes([192, 0, 2, 2]), remote=PEER, info=traffic())
    kernel.sockets[9] = FakeSocket(9, b"\0" * 4, 80, b"\0" * 4, 0, state=SocketState.LISTEN)
    kernel.start()
    kernel.feed(LinkMessage(2, 1, "lan7").encode(RouteMessage.NEWLINK), 2)
    kernel.sockets[2] = FakeSocket(2, bytes([192, 0, 2, 2]), 2, remote=PEER, info=traffic())
    updated, added, _ = kernel.wait(1.0)
    assert isinstance(updated, FlowUpdated)
    assert (added.flow.id, added.flow.interface.name) == ("c2", "lan7")
    assert (updated.flow.interface.name, updated.flow.interface.kind) == ("lan7", InterfaceKind.WIFI)
    assert updated.delta.rx_bytes == 0
    assert kinds(kernel.wait(1.0)) == ["PollCompleted"]


def test_an_address_on_two_interfaces(kernel):
    """The first one has it until it has it no more; then the other one."""
    address = bytes([192, 0, 2, 2])
    kernel.sockets[1] = FakeSocket(1, address, remote=PEER, info=traffic())
    kernel.start()
    kernel.feed(AddressMessage(2, 3, address).encode(RouteMessage.NEWADDR), 2)
    kernel.feed(AddressMessage(2, 3, address).encode(RouteMessage.DELADDR), 2)
    assert kinds(kernel.wait(1.0)) == ["PollCompleted"]
    kernel.feed(AddressMessage(2, 3, address).encode(RouteMessage.NEWADDR), 2)
    kernel.feed(AddressMessage(2, 2, address).encode(RouteMessage.DELADDR), 2)
    updated, _ = kernel.wait(1.0)
    assert updated.flow.interface.name == "wg0"


def test_a_new_list_replaces_the_old_one(kernel):
    """After an overrun everything is listed anew: an address whose end was missed is no longer there."""
    kernel.start()
    kernel.addresses.pop()
    kernel.session.channel_failed(2, errno.ENOBUFS, kernel.now)
    kernel.run()
    kernel.sockets[1] = FakeSocket(1, bytes([192, 0, 2, 2]), remote=PEER, info=traffic())
    kernel.sockets[2] = FakeSocket(2, bytes([127, 1, 2, 3]), info=traffic())
    kernel.wait(1.0)
    interfaces = {e.flow.id: e.flow.interface for e in kernel.events if isinstance(e, FlowAdded)}
    assert interfaces["c1"] is None
    assert interfaces["c2"].name == "lo", "a loopback interface has the whole prefix of its address"


def test_an_address_that_goes_takes_no_knowledge_with_it(kernel):
    """The flow used this interface; that nothing is known now is no reason to forget it."""
    kernel.sockets[1] = FakeSocket(1, bytes([192, 0, 2, 2]), remote=PEER, info=traffic())
    kernel.start()
    kernel.feed(AddressMessage(2, 2, bytes([192, 0, 2, 2])).encode(RouteMessage.DELADDR), 2)
    assert kinds(kernel.wait(1.0)) == ["PollCompleted"]


def test_a_new_device_is_asked_for_once_and_a_damaged_message_takes_no_other_along(kernel):
    kernel.hold_lookups = True
    kernel.start()
    damaged = b"\x10\0\0\0\x10" + bytes(11)
    kernel.feed(encode_done(0) + damaged + LinkMessage(4, 1, "eth1").encode(RouteMessage.NEWLINK), 2)
    kernel.feed(LinkMessage(3, 65534, "wg1", "wireguard").encode(RouteMessage.NEWLINK), 2)
    (lost,) = kernel.run()
    assert lost.cause is LossCause.PROTOCOL
    asked = [each.request.names for each in kernel.held if isinstance(each.request, LinkKindsRequest)]
    assert asked == [("eth0",), ("eth0", "eth1")]


def test_without_rtnetlink_polls_begin_at_once(kernel):
    kernel.missing_channels = {2}
    assert kinds(kernel.start()) == ["PollCompleted"]
