"""From records to evidence: repetitions, losses, cookies that are used again, and what the maps say."""

from __future__ import annotations

from pathlib import Path

import pytest
from ebpf_records import DISCARDED, datagram_record, encode, record
from hypothesis import given
from hypothesis import strategies as st

from nstat_async._errors import ProtocolError
from nstat_async.ebpf import (
    FLOW,
    OWNER,
    RECORD_SIZE,
    Answer,
    Counted,
    Counters,
    Ended,
    Ends,
    Established,
    Flag,
    FlowRow,
    HowKnown,
    Kind,
    Ledger,
    Loss,
    LossKind,
    LossMeter,
    Operation,
    OwnerRow,
    OwnerSeen,
    PeerRow,
    Seen,
    SocketType,
    Statistics,
    Totals,
    _ledger,
    datagram_totals,
    ends_of,
    owner_of,
    remainder_of,
    tcp_totals,
)
from nstat_async.ebpf._ledger import REPEATED_WITHIN

SECOND = 1_000_000_000
RECORDED = Path(__file__).parent / "records"


def evidence(*records, **settings):
    ledger = Ledger(**{"packets": True, "births": True, **settings})
    ledger.receive(encode(*records))
    return ledger.take_evidence()


def names(found):
    return [type(one).__name__ for one in found]


def flow_row(cookie=1, first=5, **fields):
    """An entry of the map."""
    values = dict.fromkeys(FlowRow._fields, 0)
    values |= {"comm": b"dig".ljust(16, b"\0"), "local": bytes(16), "remote": bytes(16)}
    values |= {"cookie": cookie, "first": first, "family": 2, "protocol": 17, "type": SocketType.DGRAM}
    return FlowRow(**(values | fields))


def owner_row(cookie=1, **fields):
    values = dict.fromkeys(OwnerRow._fields, 0)
    values |= {"comm": b"dig".ljust(16, b"\0"), "local": bytes(16), "remote": bytes(16), "flags": Flag.HAS_PROCESS}
    return OwnerRow(
        **(
            values
            | {"cookie": cookie, "family": 2, "protocol": 17, "type": SocketType.DGRAM, "pid": 7, "start": 3, **fields}
        )
    )


def listed(ledger, *rows, errno=0):
    ledger.answer(Answer(Operation.FLOWS, last=True, errno=errno, rows=rows))
    return ledger.take_evidence()


# --- TCP ---------------------------------------------------------------------------------


def test_an_outbound_connection_begins_with_its_process_and_ends_with_final_counts():
    """It begins with its process, is established with its ends, and ends with final counts."""
    found = evidence(
        record(Kind.OPENED, 9, 10, pid=42, start=5, remote_port=0x5000),
        record(Kind.ESTABLISHED, 9, 20, local_port=4711, remote_port=0x5000),
        record(
            Kind.CLOSED,
            9,
            30,
            flags=Flag.FIN_RECEIVED,
            tx_bytes=130,
            rx_calls=30,
            rx_bytes=71,
            tx_packets=3,
            rx_packets=2,
        ),
    )
    assert names(found) == ["Seen", "Established", "Ended"]
    seen, established, ended = found
    assert (seen.outbound, seen.began) == (True, True)
    assert owner_of(seen.facts) == (42, 5, "curl", HowKnown.CALL)
    assert ends_of(established.facts) == Ends(b"\x7f\0\0\1", 4711, b"\x7f\0\0\2", 80)
    assert ended.totals == Totals(70, 100, 2, 3, 30, 0, None)
    assert (ended.final, ended.established, ended.time) == (True, True, 30)
    assert ended.facts.local_port == 4711


def test_an_accepted_connection_and_its_owner():
    """The owner comes with the first use."""
    found = evidence(
        record(Kind.ACCEPTED, 3),
        record(Kind.FIRST_IO, 3, 5, pid=8),
        record(Kind.CLOSED, 3, 9),
    )
    assert names(found) == ["Seen", "OwnerSeen", "Ended"]
    assert (found[0].outbound, found[0].began, owner_of(found[0].facts)) == (False, True, None)
    assert owner_of(found[1].facts).pid == 8
    assert not found[1].after_end


def test_an_owner_after_the_end():
    """Reset before anybody used it: the closer is seen afterwards, and it is said."""
    found = evidence(
        record(Kind.ACCEPTED, 3),
        record(Kind.CLOSED, 3, 9),
        record(Kind.FIRST_IO, 3, 12, pid=8, flags=Flag.HAS_PROCESS | Flag.BY_CLOSER),
    )
    assert names(found) == ["Seen", "Ended", "OwnerSeen"]
    assert found[2].after_end
    assert owner_of(found[2].facts).how is HowKnown.CLOSER


@pytest.mark.parametrize(
    ("flags", "error", "shut_for_reading"),
    [
        (0, None, False),
        (Flag.ERROR_KNOWN, 0, False),
        (Flag.ERROR_KNOWN | 104 << 16, 104, False),
        (Flag.ERROR_KNOWN | Flag.SHUT_FOR_READING | 32 << 16, 32, True),
    ],
)
def test_an_end_has_the_error_that_ended_it(flags, error, shut_for_reading):
    """The third byte of the flags, where the programs say that they know it."""
    (ended,) = evidence(record(Kind.CLOSED, 1, flags=flags))
    assert (ended.error, ended.shut_for_reading) == (error, shut_for_reading)


@pytest.mark.parametrize("kind", [Kind.OPENED, Kind.ESTABLISHED, Kind.ACCEPTED, Kind.CLOSED])
def test_the_same_change_of_state_twice_in_a_row_is_one(kind):
    """The same change of state twice, one right after the other, is one."""
    before = [record(Kind.OPENED, 1, 1)] if kind in {Kind.ESTABLISHED, Kind.CLOSED} else []
    once = evidence(*before, record(kind, 1, 10))
    ledger = Ledger(packets=True, births=True)
    ledger.receive(encode(*before, record(kind, 1, 10), record(kind, 1, 9 + REPEATED_WITHIN)))
    assert names(ledger.take_evidence()) == names(once)
    assert ledger.repeated == 1


def test_a_beginning_after_a_lost_end():
    """OPENED or ACCEPTED again later: the first connection ended unseen, and a new one began."""
    for kind in (Kind.OPENED, Kind.ACCEPTED):
        found = evidence(record(kind, 1, 0), record(kind, 1, REPEATED_WITHIN))
        assert names(found) == ["Seen", "Ended", "Seen"]
        assert (found[1].final, found[1].time) == (False, None)
        assert (found[2].outbound, found[2].began) == (kind is Kind.OPENED, True)
    assert found[1].totals == Totals(None, None, None, None)


@pytest.mark.parametrize("other", [{"old": 2}, {"tx_bytes": 1}, {"local_port": 40001}])
def test_another_change_is_no_repetition(other):
    """What ended in one state, or with other counts or ports, did not end twice."""
    assert names(evidence(record(Kind.CLOSED, 1, 10), record(Kind.CLOSED, 1, 20, **other))) == ["Ended", "Ended"]


def test_a_user_of_a_connection_is_seen_after_the_end_of_one_of_the_last_that_ended(monkeypatch):
    """That of another one is only seen, and nobody is no user."""
    monkeypatch.setattr(_ledger, "MAX_REMEMBERED", 2)
    found = evidence(
        *(record(Kind.CLOSED, cookie, SECOND * time) for time, cookie in enumerate((1, 2, 1, 3))),
        *(record(Kind.FIRST_IO, cookie, 9 * SECOND, pid=8) for cookie in (1, 2, 3)),
        record(Kind.FIRST_IO, 4, 9 * SECOND),
    )
    assert [(one.facts.cookie, one.after_end) for one in found[4:]] == [(1, True), (2, False), (3, True)]


def test_one_cookie_with_two_connections():
    """Each has its own beginning and end."""
    two = [record(Kind.OPENED, 1, 0), record(Kind.CLOSED, 1, 5, tx_bytes=11)]
    two += [record(Kind.OPENED, 1, 9), record(Kind.CLOSED, 1, 12, tx_bytes=22)]
    found = evidence(*two)
    assert names(found) == ["Seen", "Ended"] * 2
    assert [e.totals.tx_bytes for e in found if isinstance(e, Ended)] == [11, 22]


def test_both_sides_connect_at_once():
    """OPENED and then what looks like ACCEPTED: outbound, and established."""
    found = evidence(record(Kind.OPENED, 1, 0), record(Kind.ACCEPTED, 1, 5), record(Kind.CLOSED, 1, 9))
    assert names(found) == ["Seen", "Established", "Ended"]
    assert found[0].outbound


def test_what_began_before_the_programs():
    """Its end is said with all its counts; ESTABLISHED without OPENED is an outbound connection."""
    (ended,) = evidence(record(Kind.CLOSED, 1, 5, tx_bytes=9))
    assert (ended.totals.tx_bytes, ended.final, ended.established) == (9, True, True)
    found = evidence(record(Kind.ESTABLISHED, 2), record(Kind.CLOSED, 2, 9))
    assert names(found) == ["Seen", "Ended"]
    assert (found[0].outbound, found[0].began, found[1].established) == (True, False, True)


def test_a_connection_that_never_was():
    """Refused or given up: SYN_SENT to CLOSE."""
    found = evidence(record(Kind.OPENED, 1, 0), record(Kind.CLOSED, 1, 9, old=2))
    assert [e.established for e in found if isinstance(e, Ended)] == [False]
    opened = record(Kind.OPENED, 1, 0, pid=7, local_port=0)
    there = {"local_port": 40000, "local": b"\x7f\0\0\1".ljust(16, b"\0")}
    ended = evidence(opened, record(Kind.CLOSED, 1, 9, old=2, **there))[-1].facts
    assert (ended.local_port, ended.local, ended.pid) == (40000, there["local"], 7), "only the end tells from where"
    (lone,) = evidence(record(Kind.CLOSED, 1, 9, old=2))
    assert not lone.established


def test_the_fin_is_no_byte():
    """TCP counts a received FIN; of a connection that received nothing else nothing is left."""
    assert tcp_totals(record(Kind.CLOSED, rx_bytes=71, flags=Flag.FIN_RECEIVED)).rx_bytes == 70
    assert tcp_totals(record(Kind.CLOSED, rx_bytes=71)).rx_bytes == 71
    assert tcp_totals(record(Kind.CLOSED, rx_bytes=0, flags=Flag.FIN_RECEIVED)).rx_bytes == 0
    assert tcp_totals(record(Kind.CLOSED, rx_payload=199)).smoothed_rtt_us == 24.875


# --- datagram sockets ----------------------------------------------------------------------


def test_a_datagram_socket_is_seen_counted_and_ends_with_what_went_through_it():
    """First use, growth, and release with what went through it."""
    ledger = Ledger(packets=True, births=True)
    born = Flag.HAS_PROCESS | Flag.COUNTED_FROM_BIRTH
    ledger.receive(encode(datagram_record(Kind.FIRST_IO, 1, 10, pid=7, flags=born)))
    ledger.answer(Answer(Operation.FLOWS, True, 0, (flow_row(tx_payload=50, tx_packets=1, flags=born, pid=7),)))
    ledger.answer(Answer(Operation.FLOWS, True, 0, (flow_row(tx_payload=50, tx_packets=1, flags=born, pid=7),)))
    ledger.receive(encode(datagram_record(Kind.RELEASED, 1, 20, tx_payload=90, tx_packets=2, pid=7, flags=born)))
    found = ledger.take_evidence()
    assert names(found) == ["Seen", "Counted", "Ended"]
    assert found[0].began is True
    assert (found[1].totals, found[1].whole) == (Totals(0, 50, 0, 1), True)
    assert (found[2].totals, found[2].final, found[2].established) == (Totals(0, 90, 0, 2), True, True)
    assert len(ledger) == len(ledger.sockets) == ledger.repeated == 0


@pytest.mark.parametrize(
    ("flags", "births", "began"), [(Flag.COUNTED_FROM_BIRTH, True, True), (0, True, False), (0, False, None)]
)
def test_whether_it_is_the_beginning(flags, births, began):
    """Seen at its making: yes; makings are seen and this one was not: no; they are not seen: unknown."""
    (seen,) = evidence(datagram_record(Kind.FIRST_IO, flags=flags), births=births)
    assert seen.began is began


def test_another_process_uses_it():
    """Its maker first, then its user: said once each."""
    maker = {"pid": 1, "flags": Flag.HAS_PROCESS | Flag.BY_CREATOR}
    ledger = Ledger(packets=True, births=True)
    ledger.receive(
        encode(
            datagram_record(Kind.FIRST_IO, 1, 1, **maker),
            datagram_record(Kind.FIRST_IO, 1, 2, **maker),
            datagram_record(Kind.FIRST_IO, 1, 3, pid=2),
            datagram_record(Kind.FIRST_IO, 1, 4, pid=2),
        )
    )
    found = ledger.take_evidence()
    assert names(found) == ["Seen", "OwnerSeen"]
    assert ledger.repeated == 2
    assert [owner_of(e.facts).how for e in found] == [HowKnown.CREATOR, HowKnown.CALL]


def test_packets_where_they_are_counted_and_calls_where_not():
    """Each direction for itself; calls are no packets."""
    counters = Counters(
        tx_bytes=10, tx_calls=1, rx_bytes=40, rx_calls=2, tx_payload=30, rx_payload=0, tx_packets=3, rx_packets=0
    )
    assert datagram_totals(counters, packets=True) == Totals(40, 30, None, 3)
    calls = Counters(10, 1, 40, 2, 0, 0, 0, 0)
    assert datagram_totals(calls, packets=False) == Totals(40, 10, None, None)
    assert datagram_totals(Counters(*(0,) * 8), packets=True) == Totals(0, 0, 0, 0)


def test_a_lost_first_use_is_found_in_the_list():
    """The list of counts says what the lost record did."""
    ledger = Ledger(packets=True, births=True)
    found = listed(ledger, flow_row(4, tx_payload=9, tx_packets=1, pid=3, flags=Flag.HAS_PROCESS))
    assert names(found) == ["Seen", "Counted"]
    assert owner_of(found[0].facts).pid == 3
    assert not found[1].whole
    row = flow_row(4, tx_payload=9, tx_packets=1)
    listed(ledger, row, flow_row(5))
    assert ledger.repeated == 0, "a row without a process says nothing again"
    (used,) = listed(ledger, row, flow_row(5, pid=3, flags=Flag.HAS_PROCESS))
    assert owner_of(used.facts).pid == 3


def test_a_list_has_rows_that_are_nobodys_business():
    """TCP's, for which records are enough; half-made ones without a family; the library's own."""
    ledger = Ledger(packets=True, births=True, ignore=[5])
    assert listed(ledger, flow_row(3, type=SocketType.STREAM), flow_row(4, family=0), flow_row(5)) == []


def test_a_lost_release_is_proven_by_two_lists():
    """One list may be older than the socket; two whole ones are not. What was counted is kept, and not called final."""
    ledger = Ledger(packets=True, births=True)
    listed(ledger, flow_row(1, tx_payload=9, tx_packets=1), flow_row(2))
    assert listed(ledger, flow_row(2)) == []
    assert listed(ledger, flow_row(2), errno=12) == []  # not whole: it proves nothing
    (ended,) = listed(ledger, flow_row(2))
    assert (ended.facts.cookie, ended.final, ended.totals.tx_bytes) == (1, False, 9)
    assert 2 in ledger
    assert 1 not in ledger


def test_a_socket_that_begins_during_a_list():
    """It is not taken for gone."""
    ledger = Ledger(packets=True, births=True)
    listed(ledger)
    ledger.receive(encode(datagram_record(Kind.FIRST_IO, 5)))
    ledger.take_evidence()
    assert listed(ledger) == []
    assert 5 in ledger


def test_a_list_that_is_older_than_the_end():
    """A row that was read before the release and arrives after it brings nothing back."""
    ledger = Ledger(packets=True, births=True)
    ledger.receive(encode(datagram_record(Kind.FIRST_IO, 1, 1), datagram_record(Kind.RELEASED, 1, 2)))
    ledger.take_evidence()
    assert listed(ledger, flow_row(1)) == []
    assert len(ledger) == 0


def test_an_entry_that_was_made_anew_counts_on():
    """Its first counts are not forgotten."""
    ledger = Ledger(packets=True, births=True)
    listed(ledger, flow_row(1, first=5, tx_payload=100, tx_packets=2))
    (counted,) = listed(ledger, flow_row(1, first=6, tx_payload=7, tx_packets=1))
    assert counted.totals == Totals(0, 107, 0, 3)
    ledger.receive(encode(datagram_record(Kind.RELEASED, 1, 20, tx_payload=8, tx_packets=2)))
    (ended,) = ledger.take_evidence()
    assert ended.totals == Totals(0, 108, 0, 4)


def test_an_entry_that_is_found_anew_at_the_end_counted_before():
    """Whether its release is reported or it is taken from the map."""
    ledger = Ledger(packets=True, births=True)
    before = {"first": 5, "tx_payload": 100, "tx_packets": 2}
    listed(ledger, flow_row(1, **before), flow_row(2, **before), flow_row(3, **before))
    ledger.receive(encode(datagram_record(Kind.RELEASED, 1, 20, tx_payload=8, tx_packets=2)))
    rows = flow_row(2, first=6, tx_payload=8, tx_packets=2), flow_row(3, first=5, tx_payload=108, tx_packets=4)
    ledger.answer(Answer(Operation.TAKE, True, 0, rows))
    assert [(one.totals, one.established) for one in ledger.take_evidence()] == [(Totals(0, 108, 0, 4), True)] * 3


def test_a_release_that_nothing_came_before_is_an_end_once():
    found = evidence(datagram_record(Kind.RELEASED, 1, 10), datagram_record(Kind.RELEASED, 1, 20))
    assert names(found) == ["Ended"]


def test_counts_that_are_taken_are_final_where_another_source_reported_the_end():
    """Somebody else reported the end: the entry says the final counts."""
    ledger = Ledger(packets=False, births=False)
    ledger.receive(encode(datagram_record(Kind.FIRST_IO, 1)))
    ledger.answer(Answer(Operation.TAKE, True, 0, (flow_row(1, tx_bytes=40, tx_calls=2),)))
    found = ledger.take_evidence()
    assert names(found) == ["Seen", "Ended"]
    assert (found[1].final, found[1].totals) == (True, Totals(0, 40, None, None))


def test_a_socket_that_is_connected_later():
    """New ends are news, without new counts."""
    ledger = Ledger(packets=True, births=True)
    listed(ledger, flow_row(1))
    (counted,) = listed(ledger, flow_row(1, remote_port=0x3500, remote=b"\x08\x08\x08\x08".ljust(16, b"\0")))
    assert ends_of(counted.facts).remote_port == 53


def test_owners_of_what_was_there_before():
    """A descriptor is evidence; what is known by a call is not weakened by it."""
    ledger = Ledger(packets=True, births=True)
    ledger.receive(encode(datagram_record(Kind.FIRST_IO, 1, pid=4), record(Kind.OPENED, 3, pid=4)))
    ledger.take_evidence()
    rows = owner_row(1), owner_row(2), owner_row(3, protocol=6, type=SocketType.STREAM)
    ledger.answer(Answer(Operation.OWNERS, True, 0, rows))
    (seen,) = ledger.take_evidence()
    assert (seen.facts.cookie, owner_of(seen.facts).how) == (2, HowKnown.DESCRIPTOR)


def test_descriptors_of_sockets_that_no_dump_has():
    """They are told again: their row has the inode."""
    ledger = Ledger(packets=True, births=True)
    ledger.receive(encode(datagram_record(Kind.FIRST_IO, 1, pid=4, type=SocketType.RAW)))
    ledger.take_evidence()
    rows = owner_row(1, type=SocketType.RAW), owner_row(2, protocol=1), owner_row(3, family=17, protocol=0)
    ledger.answer(Answer(Operation.OWNERS, True, 0, rows))
    assert [(seen.facts.cookie, seen.after_end) for seen in ledger.take_evidence()] == [(n, False) for n in (1, 2, 3)]


def test_own_sockets_and_unknown_kinds():
    """The library's own sockets are nobody's business; a kind of a later table is counted and stepped over."""
    ledger = Ledger(packets=True, births=True, ignore=[5])
    ledger.receive(encode(record(Kind.OPENED, 5), record(77, 6), record(Kind.OPENED, 7)))  # type: ignore[arg-type]
    assert [e.facts.cookie for e in ledger.take_evidence()] == [7]
    assert (ledger.discarded, ledger.records) == (1, 3)
    ledger.receive(encode(record(Kind.OPENED, 8, header=RECORD_SIZE | DISCARDED), record(Kind.OPENED, 9)))
    assert [e.facts.cookie for e in ledger.take_evidence()] == [9]
    assert (ledger.discarded, ledger.records) == (2, 4)


def test_a_forgotten_socket_ends_once_and_an_unknown_one_not_at_all():
    """Somebody else proved that it is gone."""
    ledger = Ledger(packets=True, births=True)
    ledger.receive(encode(record(Kind.OPENED, 5)))
    ledger.forget(5)
    ledger.forget(6)
    assert names(ledger.take_evidence()) == ["Seen", "Ended"]


def test_packet_sockets_have_no_ends():
    """Neither do they have a port; the local end of a version 6 socket has 16 bytes."""
    assert ends_of(datagram_record(Kind.FIRST_IO, family=17)) == Ends(None, None, None, None)
    assert len(ends_of(datagram_record(Kind.FIRST_IO, family=10)).local) == 16
    assert ends_of(datagram_record(Kind.FIRST_IO, remote=bytes(16))) == Ends(b"\x7f\0\0\1", None, None, None)


# --- losses ----------------------------------------------------------------------------------


def statistics(**fields):
    values = dict.fromkeys(Statistics._fields, 0)
    return Statistics(**(values | fields))


def test_losses_are_counted_once():
    """Each by its kind, with what repairs it."""
    meter = LossMeter()
    assert meter.update(statistics(submitted=9, caught=4)) == []
    losses = meter.update(statistics(ring_full=3, map_full=2, states_missed=1, transfers_missed=5, foreign=8))
    assert [(loss.kind, loss.number) for loss in losses] == [
        (LossKind.RING_FULL, 3),
        (LossKind.MAP_FULL, 2),
        (LossKind.STATES_SKIPPED, 1),
        (LossKind.TRANSFERS_SKIPPED, 5),
        (LossKind.FOREIGN, 8),
    ]
    assert [loss.needs_dump for loss in losses] == [True, False, True, False, True]
    assert losses[0].repairs == {Operation.FLOWS, Operation.OWNERS}
    assert meter.update(statistics(ring_full=5, map_full=2, states_missed=1, transfers_missed=5, foreign=8)) == [
        Loss(LossKind.RING_FULL, 2)
    ]


# --- whole worlds ----------------------------------------------------------------------------


@st.composite
def worlds(draw):
    """Connections of a few sockets, one after the other on each: (records in order, what happened to each)."""
    records, truth, time = [], [], 0
    for _ in range(draw(st.integers(1, 12))):
        cookie = draw(st.integers(1, 3))
        time += SECOND
        inbound, sent = draw(st.booleans()), draw(st.integers(0, 1000))
        life = [record(Kind.ACCEPTED, cookie, time)] if inbound else [record(Kind.OPENED, cookie, time, pid=5)]
        if not inbound and draw(st.booleans()):
            life.append(record(Kind.ESTABLISHED, cookie, time + 10))
        life.append(record(Kind.CLOSED, cookie, time + 20, tx_bytes=sent))
        records += life
        truth.append((cookie, sent, len(life)))
    return records, truth


@given(worlds(), st.data())
def test_repetitions_change_nothing(world, data):
    """Any record may come twice in a row: the evidence is the same."""
    records, truth = world
    repeated = []
    for one in records:
        repeated += [one] * data.draw(st.integers(1, 2))
    assert evidence(*repeated) == evidence(*records)
    ends = [e for e in evidence(*records) if isinstance(e, Ended)]
    assert [(e.facts.cookie, e.totals.tx_bytes) for e in ends] == [(cookie, sent) for cookie, sent, _ in truth]


@given(worlds(), st.data())
def test_however_records_are_cut_and_lost(world, data):
    """Lost records cost what they said and no more: beginnings and ends alternate for each socket, and nothing is left over."""
    records, truth = world
    kept = [one for one in records if data.draw(st.integers(0, 3))]
    ledger = Ledger(packets=True, births=True)
    while kept:
        size = data.draw(st.integers(1, len(kept)))
        ledger.receive(encode(*kept[:size]))
        kept = kept[size:]
    found = ledger.take_evidence()
    for cookie in {cookie for cookie, _, _ in truth}:
        story = [e for e in found if e.facts.cookie == cookie]
        open_now = False
        for one in story:
            if isinstance(one, Seen):
                assert not open_now
                open_now = True
            elif isinstance(one, Established):
                assert open_now
            elif isinstance(one, Ended):
                assert open_now or one.final  # the beginning was lost
                open_now = False
        assert open_now == (cookie in ledger)
    finals = [(e.facts.cookie, e.totals.tx_bytes) for e in found if isinstance(e, Ended) and e.final]
    assert len(finals) <= len(truth)


@given(st.binary(max_size=700))
def test_arbitrary_bytes_are_records_or_a_protocol_error(data):
    """They are records of whatever kind, or a ProtocolError."""
    ledger = Ledger(packets=True, births=True)
    try:
        ledger.receive(data)
    except ProtocolError:
        return
    for one in ledger.take_evidence():
        ends_of(one.facts)
        owner_of(one.facts)


def test_rows_have_a_name_for_each_value_of_their_layout():
    """FlowRow and OwnerRow have a name for each value of their layout."""
    assert len(FLOW.unpack(bytes(FLOW.size))) == len(FlowRow._fields) - 1
    assert len(OWNER.unpack(bytes(OWNER.size))) == len(OwnerRow._fields)
    assert isinstance(Counted, type)
    assert isinstance(OwnerSeen, type)


# --- entries that nobody removes ---------------------------------------------------------------


def walked(ledger, *rows, errno=0):
    ledger.answer(Answer(Operation.OWNERS, last=True, errno=errno, rows=rows))
    return ledger.take_drops()


def packet_row(**fields):
    return flow_row(9, family=17, type=SocketType.RAW, tx_bytes=5, tx_calls=1, **fields)


def test_a_packet_socket_is_dropped_when_nobody_has_it():
    """Two whole walks without it, and nothing went through it: its end was not seen, and its entry is to go."""
    ledger = Ledger(packets=True, births=True)
    listed(ledger, packet_row())
    assert walked(ledger, owner_row(9)) == []
    assert walked(ledger) == []
    assert walked(ledger, errno=5) == []  # not whole
    assert walked(ledger) == [9]
    assert names(ledger.take_evidence()) == ["OwnerSeen", "Ended"]
    assert walked(ledger) == []


def test_a_packet_socket_that_is_used_stays():
    """Somebody has it where no walk sees it."""
    ledger = Ledger(packets=True, births=True)
    for calls in range(1, 6):
        listed(ledger, packet_row(rx_calls=calls))
        assert walked(ledger) == []
    assert 9 in ledger


def test_udp_needs_no_walk_where_its_end_is_seen():
    """Where it is not, it does; and a connection's entry is dropped without ending the connection."""
    seen, unseen = Ledger(packets=True, births=True), Ledger(packets=False, births=False)
    for ledger in (seen, unseen):
        ledger.receive(encode(record(Kind.ACCEPTED, 4)))
        listed(ledger, flow_row(1), flow_row(4, type=SocketType.STREAM))
    assert [walked(seen), walked(seen)] == [[], [4]]
    assert [walked(unseen), walked(unseen)] == [[], [1, 4]]
    assert 4 in seen
    assert 4 in unseen
    assert 1 not in unseen


def test_an_end_that_is_reported_after_all():
    """An entry that was taken is not dropped again."""
    ledger = Ledger(packets=False, births=False)
    listed(ledger, flow_row(1))
    walked(ledger)
    ledger.answer(Answer(Operation.TAKE, True, 0, (flow_row(1),)))
    assert walked(ledger) == []


# --- processes that are not this machine's -------------------------------------------------------


def test_no_process_is_passed_on_where_pids_are_not_to_be_trusted():
    """In a pid namespace of its own: everything else is said, and no process, by whatever way."""
    ledger = Ledger(packets=True, births=True, processes=False)
    ledger.receive(encode(record(Kind.OPENED, 1, pid=5), record(Kind.ACCEPTED, 2), record(Kind.FIRST_IO, 2, pid=5)))
    listed_now = listed(ledger, flow_row(3, pid=5, flags=Flag.HAS_PROCESS | Flag.COUNTED_FROM_BIRTH))
    ledger.answer(Answer(Operation.OWNERS, True, 0, (owner_row(2), owner_row(7))))
    found = listed_now + ledger.take_evidence()
    assert names(found) == ["Seen", "Seen", "Seen"]
    assert {owner_of(e.facts) for e in found} == {None}
    assert found[2].began is True


def test_what_the_list_of_peers_leaves_out():
    """The exact difference; never negative, where the peers were read later."""
    peers = [PeerRow(1, bytes(16), 53, 2, 10, 1, 40, 2, 0, 0), PeerRow(1, bytes(16), 54, 2, 5, 1, 0, 0, 0, 0)]
    counters = Counters(0, 0, 0, 0, tx_payload=100, rx_payload=40, tx_packets=7, rx_packets=2)
    assert remainder_of(counters, peers)[:4] == (0, 85, 0, 5)
    assert remainder_of(Counters(*(0,) * 8), peers)[:4] == (0, 0, 0, 0)
