"""Values: immutable, hashable, honest about what is unknown."""

from __future__ import annotations

import copy
import pickle
import uuid

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ntstat_wire import Wire, address

from examples import examples
from nstat_async import (
    Capabilities,
    Counts,
    Delta,
    Details,
    Direction,
    Endpoint,
    Flow,
    Interface,
    InterfaceKind,
    MediumCounts,
    Process,
    Provider,
    TcpState,
    UsageError,
)
from nstat_async._model import COUNTS_FIELDS, began_anew, counts_of
from nstat_async.ntstat import Mode, Session


@pytest.mark.parametrize(
    ("text", "port", "shown"),
    [
        ("192.0.2.1", 80, "192.0.2.1:80"),
        ("2001:db8::1", 443, "[2001:db8::1]:443"),
        ("fe80::1%4", 53, "[fe80::1%4]:53"),
        ("0.0.0.0", 0, "0.0.0.0:0"),
    ],
)
def test_endpoints_are_shown_as_one_writes_them(text, port, shown):
    endpoint = Endpoint.parse(text, port)
    assert str(endpoint) == shown
    assert repr(endpoint) == f"<Endpoint {shown}>"
    assert endpoint.ip_address.packed == endpoint.packed
    assert hash(endpoint) == hash(Endpoint.parse(text, port))
    assert endpoint.address == text.partition("%")[0]


def test_endpoints_know_loopback_and_unspecified_and_refuse_nonsense():
    assert Endpoint.parse("127.9.9.9").is_loopback
    assert Endpoint.parse("::1").is_loopback
    assert not Endpoint.parse("::2").is_loopback
    assert Endpoint.parse("::").is_unspecified
    assert not Endpoint.parse("::1").is_unspecified
    with pytest.raises(ValueError, match="nowhere"):
        Endpoint.parse("nowhere")


@pytest.mark.parametrize(
    "text", ["fe80::1%", "192.0.2.1%1", "fe80::1%1%1", f"fe80::1%{1 << 32}", "fe80::1%" + "9" * 5_000]
)
def test_a_zone_is_an_index_of_32_bits_or_a_name_and_only_ipv6_has_one(text):
    with pytest.raises(ValueError, match=r"does not appear to be|is not an interface of this machine"):
        Endpoint.parse(text)
    assert Endpoint.parse(f"fe80::1%{(1 << 32) - 1}").scope_id == (1 << 32) - 1


def test_counts_are_made_by_name_and_unknown_is_none():
    counts = Counts(rx_bytes=5, tx_bytes=0)
    assert (counts.rx_bytes, counts.tx_bytes, counts.rx_packets) == (5, 0, None)
    assert dict(counts.items()) == {"rx_bytes": 5, "tx_bytes": 0}
    assert list(counts.as_dict()) == list(COUNTS_FIELDS)
    assert repr(counts) == "<Counts rx_bytes=5>"
    assert repr(Counts(rx_bytes=0)) == "<Counts zero>"
    assert repr(Counts()) == "<Counts unknown>"
    assert counts.media == ()
    assert Counts(rx_bytes=0).is_zero
    assert not counts.is_zero
    with pytest.raises(TypeError, match="no field 'bytes'"):
        Counts(bytes=5)


def test_values_cannot_be_changed_and_are_equal_by_content():
    counts = Counts(rx_bytes=5)
    for change in (lambda: setattr(counts, "rx_bytes", 6), lambda: delattr(counts, "_values")):
        with pytest.raises((attrs.exceptions.FrozenInstanceError, AttributeError)):
            change()
    assert counts == Counts(rx_bytes=5)
    assert counts != Counts(rx_bytes=6)
    assert counts != 5
    assert len({counts, Counts(rx_bytes=5)}) == 1
    for value in (
        Flow("1", Provider.TCP), Process(1), Interface(4), Endpoint.parse("::1"), Details(),
        MediumCounts(1, 2, 3, 4), Delta(1, 2, 3, 4),
    ):  # fmt: skip
        name = attrs.fields(type(value))[0].name
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            setattr(value, name, None)
        assert hash(value) == hash(copy.copy(value))


_NUMBER = st.none() | st.integers(0, 2**64 - 1)


def test_each_count_is_read_by_its_name_however_it_was_made():
    media = {"wifi": MediumCounts(1, 2, 3, 4)}
    values = {name: number for number, name in enumerate(COUNTS_FIELDS, 1)}
    for counts in (Counts(media=media, **values), counts_of(tuple(values.values()), tuple(media.items()))):
        assert {name: getattr(counts, name) for name in COUNTS_FIELDS} == counts.as_dict() == values
        assert dict(counts.media) == dict(pickle.loads(pickle.dumps(counts)).media) == media
    assert Counts(**values).media == counts_of(tuple(values.values())).media == ()
    assert all(getattr(Counts, name).__doc__ for name in COUNTS_FIELDS)
    assert (Counts() == 5) is False


@pytest.mark.parametrize(
    ("earlier", "later", "grown"),
    [
        ((10, 10, 10, 10), (4, 4, 4, 4), (4, 4, 4, 4)),  # all began anew
        ((10, 10, 10, 10), (5, 5, 5, 5), (0, 0, 0, 0)),  # none by more than half: odd readings
        ((10, 10, 10, 10), (4, 4, 4, 10), (0, 0, 0, 0)),
        ((1, 2, 3, 4), (11, 22, 33, 44), (10, 20, 30, 40)),
        ((1, 2, 3, 4), (1, None, 3, None), (0, None, 0, None)),
        ((1, 2, None, None), (1, 2, 5, 6), (0, 0, 5, 6)),
        ((1, 2, 2**32 - 1, 4), (1, 2, 4, 4), (0, 0, 5, 0)),  # a counter of 32 bits wrapped
        ((1, 2, 3, 2**32 - 1), (1, 2, 3, 5), (0, 0, 0, 6)),
        ((1, 2, 3, 2**31 + 7), (2, 3, 4, 7), (1, 1, 1, 0)),  # half of them is no wrap
        ((1, 2, 3, 2**31 + 100), (2, 3, 4, 2**31 - 100), (1, 1, 1, 0)),
        ((1, 2, 3, 2**31), (2, 3, 4, 2**29), (1, 1, 1, 0)),
    ],
)
def test_growth_judges_each_counter_by_itself_unless_all_began_anew(earlier, later, grown):
    names = ("rx_bytes", "tx_bytes", "rx_packets", "tx_packets")
    before, after = (Counts(**dict(zip(names, values, strict=True))) for values in (earlier, later))
    assert after.since(before) == Delta(*grown)
    assert after.since(None) == Delta(*later)


@settings(deadline=None, max_examples=examples(120))
@given(_NUMBER, _NUMBER, _NUMBER, _NUMBER)
def test_a_delta_is_never_negative_and_unknown_only_where_the_later_is(a, b, c, d):
    earlier, later = Counts(rx_bytes=a, tx_bytes=b), Counts(rx_bytes=c, tx_bytes=d)
    delta = later.since(earlier)
    anew = began_anew((c, d), (a, b))
    for before, after, grown in ((a, c, delta.rx_bytes), (b, d, delta.tx_bytes)):
        assert (grown is None) == (after is None)
        assert grown is None or grown == (after if anew else max(0, after - (before or 0)))
    assert later.since(None).rx_bytes == c


@pytest.mark.parametrize("number", [1, 4, 6, 7, 11, 12])
@pytest.mark.parametrize("provider", [2, None])
def test_counters_of_a_kernel_are_equal_to_the_same_counters_made_by_hand(number, provider):
    wire = Wire(number)
    session = Session(wire.kernel, mode=Mode.FOLLOWING)
    chosen = provider or wire.udp
    data = wire.counts(5, 7, rxpackets=1, txpackets=2, txretransmit=3, avg_rtt=64, min_rtt=32, connectattempts=1)
    for datagram in wire.report(1, data, wire.descriptor(chosen), provider=chosen):
        session.receive_datagram(datagram, 0.0)
    ((_, counts),) = session.flows()
    by_hand = Counts(**counts.as_dict())
    assert counts == by_hand
    assert by_hand == counts
    assert hash(counts) == hash(by_hand)
    for again in (pickle.loads(pickle.dumps(counts)), copy.deepcopy(counts)):
        assert again == counts
    assert {name: getattr(counts, name) for name in COUNTS_FIELDS} == counts.as_dict()
    assert counts.since(Counts(rx_bytes=1)).rx_bytes == 4
    assert counts.media == ()
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        counts.rx_bytes = 5


def test_a_flow_says_what_it_is():
    flow = Flow(
        "1",
        Provider.TCP,
        local=Endpoint.parse("192.0.2.1", 5),
        state=TcpState.LISTEN,
        direction=Direction.LISTENER,
        process=Process(42, "sshd"),
    )
    assert str(flow) == "tcp 192.0.2.1:5 -> * listen pid:42 (sshd)"
    assert repr(flow).startswith("<Flow 1 tcp")
    assert not flow.is_loopback
    assert attrs.evolve(flow, interface=Interface(1, "lo0", InterfaceKind.LOOPBACK)).is_loopback
    assert attrs.evolve(flow, remote=Endpoint.parse("::1", 1)).is_loopback
    assert pickle.loads(pickle.dumps(flow)) == flow


def test_a_process_is_told_from_a_later_one_with_its_number():
    assert Process(42, unique_pid=1).key != Process(42, unique_pid=2).key
    assert str(Process(42)) == "pid:42"
    assert "for 7" in repr(Process(42, effective_pid=7))
    assert "for" not in repr(Process(42, effective_pid=42))
    assert Process(1, uuid=uuid.UUID(int=1)) == Process(1, uuid=uuid.UUID(int=1))


def test_events_of_a_kernel_keep_their_details_and_can_be_pickled():
    wire = Wire(11)
    session = Session(wire.kernel, mode=Mode.FOLLOWING)
    descriptor = wire.descriptor(2, txcwindow=10, remote=address("192.0.2.9", 443))
    session.receive_datagram(wire.updated(1, wire.counts(5), descriptor), 0.0)
    (event,) = session.take_events()
    assert event.details.congestion_window == 10
    assert event.counts.rx_bytes == 5


def test_capabilities_default_to_what_nobody_promised():
    facts = Capabilities(backend="x", kernel=None)
    assert facts.final_counts in {False, None}
    assert facts.providers == frozenset()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Endpoint("1.2.3.4", 5),
        lambda: Endpoint(b"1", 5),
        lambda: Endpoint(bytes(4), 65_536),
        lambda: Endpoint(bytes(4), "5"),
        lambda: Endpoint.parse("1.2.3.4", -1),
        lambda: Flow("x", "tcp"),
        lambda: Flow(1, Provider.TCP),
    ],
)
def test_a_value_that_cannot_be_shown_cannot_be_made(make):
    with pytest.raises(UsageError, match=r"is not an address|is not a port|are not an id"):
        make()
