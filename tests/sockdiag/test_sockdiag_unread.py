"""Flows whose fields are made when they are read are flows like any other, whatever is done with them first."""

from __future__ import annotations

import copy
import pickle
import threading

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sockdiag_fakes import LOOPBACK, PEER, FakeKernel, FakeSocket

from examples import examples
from nstat_async import Flow, FlowAdded
from nstat_async.json import dumps
from nstat_async.sockdiag import ProcessFacts, _first_rows, _rows, _scan
from nstat_async.sockdiag._messages import AddressMessage
from nstat_async.sockdiag._unread import read

LINK_LOCAL = bytes.fromhex("fe80") + bytes(13) + b"\1"
GLOBAL = bytes.fromhex("20010db8") + bytes(11) + b"\1"
MAPPED = bytes(10) + b"\xff\xff" + LOOPBACK


def first_poll(*sockets, **options):
    """A kernel with these sockets, of which a process holds those with an inode, behind its first poll."""
    kernel = FakeKernel(interval=None, **options)
    kernel.sockets = {sock.cookie: sock for sock in sockets}
    kernel.owners = {sock.inode: 7 for sock in sockets if sock.inode}
    kernel.programs = {7: ProcessFacts(7, 70, "curl", "/usr/bin/curl", "curl")}
    kernel.start()
    return kernel


def flow():
    """One that nobody has looked at."""
    ((made, _),) = first_poll(FakeSocket(0xABC, inode=5)).session.flows()
    assert type(made) is not Flow
    return made


def plain():
    """The same, made by its constructor."""
    return Flow(*attrs.astuple(flow(), recurse=False))


@pytest.mark.parametrize(
    "use",
    [
        lambda made: made == plain(),
        lambda made: plain() == made,
        lambda made: not made != plain(),  # noqa: SIM202  # the other operator
        lambda made: not plain() != made,  # noqa: SIM202  # as above
        lambda made: made != attrs.evolve(plain(), host="a"),
        lambda made: made == flow(),
        lambda made: hash(made) == hash(plain()),
        lambda made: pickle.loads(pickle.dumps(made)) == plain(),
        lambda made: copy.copy(made) == plain(),
        lambda made: copy.deepcopy(made) == plain(),
        lambda made: attrs.evolve(made, host="a") == attrs.evolve(plain(), host="a"),
        lambda made: attrs.asdict(made) == attrs.asdict(plain()),
        lambda made: repr(made) == repr(plain()),
        lambda made: str(made) == str(plain()),
        lambda made: made.__class__ is Flow,
        lambda made: made.unit == plain().unit,
        lambda made: made.is_loopback == plain().is_loopback,
        lambda made: dumps(made) == dumps(plain()),
        lambda made: dumps(FlowAdded(1.0, made, None, True)) == dumps(FlowAdded(1.0, plain(), None, True)),
    ],
)
def test_whatever_is_done_with_it_first_it_is_the_flow(use):
    made = flow()
    assert isinstance(made, Flow)
    assert use(made)
    read(made)
    assert type(made) is Flow


@pytest.mark.parametrize(("local", "remote"), [(LINK_LOCAL, GLOBAL), (GLOBAL, LINK_LOCAL)])
def test_of_two_ends_that_has_the_number_of_its_link_which_is_of_that_link_alone(local, remote):
    kernel = FakeKernel(interval=None)
    kernel.addresses.append(AddressMessage(10, 2, local))
    kernel.sockets = {1: FakeSocket(1, local, remote=remote, family=10)}
    kernel.start()
    ((made, _),) = kernel.session.flows()
    assert [end.scope_id for end in (made.local, made.remote)] == [
        2 if end == LINK_LOCAL else None for end in (local, remote)
    ]


def test_a_remote_without_port_is_one_by_any_byte_of_its_address():
    for at in range(4):
        remote = bytes(at) + b"\x0a" + bytes(3 - at)
        ((made, _),) = first_poll(FakeSocket(1, remote=remote, remote_port=0)).session.flows()
        assert made.remote.packed == remote
    ((made, _),) = first_poll(FakeSocket(1, remote=bytes(4), remote_port=0)).session.flows()
    assert made.remote is None


@pytest.mark.parametrize("field", [field.name for field in attrs.fields(Flow)])
def test_each_of_its_fields_may_be_read_first(field):
    made = flow()
    assert getattr(made, field) == getattr(plain(), field)
    assert type(made) is Flow


def test_it_can_be_matched_and_not_be_written_to():
    made = flow()
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        made.host = "a"
    with pytest.raises(AttributeError):
        made.nothing  # noqa: B018  # it has no such field
    match made:
        case Flow(id="cabc", process=process):
            assert process.name == "curl"
        case _:
            pytest.fail("no match")


def test_threads_that_read_it_at_once_find_the_same():
    for _ in range(50):
        made, found = flow(), []
        threads = [threading.Thread(target=lambda made=made, found=found: found.append(made.remote)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(found) == {plain().remote}


def test_what_it_was_when_it_was_made_it_stays():
    """Nothing that changes before somebody looks changes it."""
    kernel = first_poll(FakeSocket(1, inode=5))
    ((made, _),) = kernel.session.flows()
    kernel.sockets[1].state = 8
    kernel.links.clear()
    kernel.addresses.clear()
    kernel.poll()
    ((later, _),) = kernel.session.flows()
    assert (made.state.value, later.state.value) == ("established", "close_wait")


ADDRESSES = {2: st.sampled_from([LOOPBACK, PEER, bytes(4)]), 10: st.sampled_from([MAPPED, LINK_LOCAL, bytes(16)])}
SOCKETS = st.one_of([
    st.builds(
        FakeSocket,
        st.integers(1, 2**64 - 1),
        family=st.just(family),
        local=ADDRESSES[family],
        remote=ADDRESSES[family],
        local_port=st.sampled_from([0, 80, 40000]),
        remote_port=st.sampled_from([0, 443]),
        protocol=st.sampled_from([6, 6, 17]),
        state=st.sampled_from([1, 1, 2, 4, 7, 8, 10]),
        inode=st.integers(0, 9),
        cgroup=st.sampled_from([0, 77]),
    )
    for family in (2, 10)
])  # fmt: skip


def picture(kernel):
    """All of a look, field by field."""
    return {flow.id: (attrs.asdict(flow, recurse=False), counts) for flow, counts in kernel.session.flows()}


@settings(max_examples=examples(240))
@given(st.lists(SOCKETS, max_size=12, unique_by=lambda sock: sock.cookie), st.booleans())
def test_a_snapshot_is_the_picture_of_the_first_poll_with_the_c_code_and_without(sockets, extras):
    kernel = first_poll(*sockets, extras=extras)
    added = [event for event in kernel.events if isinstance(event, FlowAdded)]
    told = {event.flow.id: (attrs.asdict(event.flow, recurse=False), event.counts) for event in added}
    assert picture(kernel) == told
    assert len(added) == len(told)
    with pytest.MonkeyPatch.context() as patch:
        for module in (_rows, _scan, _first_rows):
            patch.setattr(module, "speedups", None)
        assert picture(first_poll(*sockets, extras=extras)) == told
