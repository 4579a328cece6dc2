"""What concerns thousands of sockets at once is done in parts: no call keeps the loop for long."""

from __future__ import annotations

import attrs
import pytest
from sockdiag_fakes import FakeKernel, FakeSocket, flow_events
from test_sockdiag_namespaces import BLUE

from nstat_async._events import FlowRemoved, FlowUpdated, PollCompleted
from nstat_async._model import Attribution
from nstat_async.sockdiag import (
    CgroupFacts,
    LinkMessage,
    NamespacesAnswer,
    OwnersAnswer,
    ProcessFacts,
    RouteMessage,
    Session,
    _book,
)

MANY = 612


def crowd(**options):
    """A kernel with many sockets of one process, all of them known."""
    kernel = FakeKernel(interval=None, **options)
    for number in range(1, MANY + 1):
        kernel.sockets[number] = FakeSocket(number, bytes([192, 0, 2, 2]), number, inode=number, cgroup=77)
        kernel.owners[number] = 10
    kernel.start()
    return kernel


def portions(kernel):
    """How many events of flows each call brings, and all of them; what is asked meanwhile is answered."""
    sizes, events = [], []
    while True:
        new = kernel.session.take_events()
        sizes.append(len(flow_events(new)))
        events += new
        commands, due = kernel.session.commands(), kernel.session.next_deadline()
        for command in commands:
            kernel._carry_out(command)
        if not commands and (due is None or due > kernel.now):
            break
        if not commands:
            kernel.session.handle_deadline(kernel.now)
    return sizes, events


def a_program_is_replaced(kernel):
    kernel.session._owners.take(OwnersAnswer((), (ProcessFacts(10, 7010, "new", "/bin/new"),)))
    return lambda event: event.flow.process.name == "new"


def an_interface_is_renamed(kernel):
    kernel.feed(LinkMessage(2, 1, "lan0").encode(RouteMessage.NEWLINK), 2)
    kernel.session.request_poll(kernel.now)
    return lambda event: event.flow.interface.name == "lan0"


def a_cgroup_becomes_known(kernel):
    kernel.session._cgroups._learn(77, CgroupFacts(77, "/system.slice/a.service"))
    return lambda event: event.flow.cgroup == "/system.slice/a.service"


def a_process_has_others_beside_it(kernel):
    facts = tuple(map(kernel._facts, (10, 11)))
    shared = tuple((inode, 2, (10, 11)) for inode in kernel.owners)
    kernel.session._owners.take(OwnersAnswer((), facts, shared=shared))
    return lambda event: event.flow.other_holders == 1


@pytest.mark.parametrize(
    "change",
    [a_program_is_replaced, an_interface_is_renamed, a_cgroup_becomes_known, a_process_has_others_beside_it],
)
def test_a_change_of_thousands_of_flows_comes_in_portions_and_whole(change):
    kernel = crowd()
    if change is a_cgroup_becomes_known:
        for entry in kernel.session._entries():
            kernel.session._cgroups._without.setdefault(77, {})[entry] = None
    changed = change(kernel)
    sizes, events = portions(kernel)
    updates = [event for event in events if isinstance(event, FlowUpdated)]
    assert max(sizes) <= 256
    assert len({event.flow.id for event in updates}) == len(updates) == MANY
    assert all(map(changed, updates))


def test_a_poll_is_complete_when_all_that_it_found_is_told():
    kernel = crowd()
    an_interface_is_renamed(kernel)
    _, events = portions(kernel)
    assert [type(event) for event in events].index(PollCompleted) == MANY


def test_a_flow_that_ends_meanwhile_is_told_of_no_more():
    kernel = crowd()
    a_program_is_replaced(kernel)
    first = flow_events(kernel.session.take_events())
    late = next(number for number in kernel.sockets if all(event.flow.id != f"c{number:x}" for event in first))
    kernel.close(late)
    events = flow_events(kernel.run())
    assert [type(event) for event in events if event.flow.id == f"c{late:x}"] == [FlowRemoved]
    assert len(first) + len(events) == MANY


def test_a_namespace_of_thousands_of_flows_ends_in_portions():
    kernel = FakeKernel(Session(all_namespaces=True))
    kernel.came_and_went = [NamespacesAnswer((BLUE,))]
    for number in range(1, MANY + 1):
        kernel.sockets[number] = FakeSocket(number, local_port=number)
    kernel.start()
    kernel.session._drop_namespace(1)
    sizes, events = portions(kernel)
    removed = [event for event in events if isinstance(event, FlowRemoved)]
    assert max(sizes) <= 256
    assert len(removed) == MANY


def test_sockets_of_a_process_that_ended_are_sought_in_portions_and_by_one_search():
    kernel = crowd()
    kernel.owners = dict.fromkeys(kernel.owners, 12)
    kernel.owner_requests.clear()
    kernel.session._owners.take(OwnersAnswer((), gone=((10, 7010),)))
    _, events = portions(kernel)
    kernel.run()
    sought = [request for request in kernel.owner_requests if request.inodes]
    assert [len(request.inodes) for request in sought] == [MANY]
    assert {flow.process.pid for flow, _ in kernel.session.flows()} == {12}
    assert not any(isinstance(event, FlowRemoved) for event in events)


def test_sockets_that_nobody_has_are_given_up_in_portions():
    kernel = crowd()
    kernel.owners.clear()
    for number in range(MANY + 1, 2 * MANY + 1):
        kernel.sockets[number] = FakeSocket(number, bytes([192, 0, 2, 2]), number, inode=number)
    kernel.session.request_poll(kernel.now)
    kernel.run()
    hidden = [flow for flow, _ in kernel.session.flows() if flow.attribution is Attribution.HIDDEN]
    assert len(hidden) == MANY


@pytest.mark.parametrize(
    ("facts", "known"),
    [
        (ProcessFacts(10, 7010, "p10", None, "p10"), ("long-name", "/bin/long-name")),
        (ProcessFacts(10, 7010, "other", None, "other"), ("other", None)),
        (ProcessFacts(10, 7010, "next", "/bin/next", "p10"), ("next", "/bin/next")),
    ],
    ids=["not to be read any more", "another program that may not be read", "another program"],
)
def test_a_path_that_cannot_be_read_any_more_is_the_one_that_was_known(facts, known):
    """A process that ends has none for a moment, with its sockets still open."""
    kernel = FakeKernel(interval=None)
    kernel.sockets[1] = FakeSocket(1, inode=1)
    kernel.owners[1] = 10
    kernel.programs[10] = ProcessFacts(10, 7010, "long-name", "/bin/long-name", "p10")
    kernel.start()
    kernel.session._owners.take(OwnersAnswer((), (facts,)))
    kernel.run()
    ((flow, _),) = kernel.session.flows()
    assert (flow.process.name, flow.process.path) == known


def test_sockets_that_were_announced_before_their_turn_are_passed_over_in_steps(monkeypatch):
    """Most flows wait for nothing else than their process, and are announced when it is found."""
    monkeypatch.setattr(_book, "PASSED_AT_ONCE", 100)
    kernel = FakeKernel(interval=None, providers={"tcp"})
    for number in range(1, MANY + 1):
        kernel.sockets[number] = FakeSocket(number, bytes([192, 0, 2, 2]), number, inode=number)
        kernel.owners[number] = 10
    kernel.start()
    book = kernel.session._namespaces[0].book
    entries = list(book.entries.values())
    book.waiting.extend(entries)
    assert book.announce_next(10, searched=True) == 0
    assert list(book.waiting) == entries[100:]
    steps = 0
    while book.unannounced:
        steps += 1
    assert steps == MANY // 100 - 1
    assert not book.waiting
    fresh = attrs.evolve(entries[0], flow=None)
    fresh.over = False
    book.waiting.extend([*entries[:3], fresh])
    assert book.unannounced
    assert list(book.waiting) == [fresh]
