"""What a kernel (6.18, x86-64) once gave for known traffic, through the whole core: see `record_living.py`."""

from __future__ import annotations

import struct
from pathlib import Path

from nstat_async.ebpf import (
    Counted,
    Ended,
    Established,
    HowKnown,
    Ledger,
    LossMeter,
    OwnerSeen,
    Seen,
    Totals,
    decode_answer,
    ends_of,
    owner_of,
)

STORY = (Path(__file__).parent / "records" / "story.ring").read_bytes()
LOCALHOST, LOCALHOST6 = b"\x7f\0\0\1", bytes(15) + b"\1"


def pieces():
    at = 0
    while at < len(STORY):
        channel, size = struct.unpack_from("<II", STORY, at)
        yield channel, STORY[at + 8 : at + 8 + size]
        at += 8 + size


def told():
    """The evidence, and the statistics."""
    ledger, statistics = Ledger(packets=True, births=True), []
    for channel, data in pieces():
        if channel == 0:
            ledger.receive(data)
            continue
        answer = decode_answer(data)
        ledger.answer(answer)
        if answer.statistics:
            statistics.append(answer.statistics)
    assert len(ledger) == 0
    assert (ledger.discarded, ledger.repeated) == (0, 0)
    return ledger.take_evidence(), statistics


def by_socket(found):
    stories: dict[int, list] = {}
    for one in found:
        stories.setdefault(one.facts.cookie, []).append(one)
    return list(stories.values())


def test_the_story_is_told():
    """A listener, both ends of a connection, one that was refused, and two datagram sockets: exact counts, process and name."""
    found, statistics = told()
    client, listener, inbound, refused, receiver, sender = sorted(by_socket(found), key=shape)
    assert [type(e) for e in listener] == [OwnerSeen]
    assert [type(e) for e in client] == [Seen, Established, Ended]
    assert [type(e) for e in inbound] == [Seen, OwnerSeen, Ended]
    assert [type(e) for e in refused] == [Seen, Ended]
    assert [type(e) for e in receiver] == [type(e) for e in sender] == [Seen, Counted, Ended]
    assert client[2].totals[:2] == (70000, 1000)
    assert inbound[2].totals[:2] == (1000, 70000)
    assert client[2].totals.retransmitted_bytes == 0
    assert ends_of(client[1].facts)[::3] == (LOCALHOST, 4001)
    assert ends_of(inbound[0].facts)[:2] == (LOCALHOST, 4001)
    assert (refused[1].established, refused[1].totals[:2]) == (False, (0, 0))
    assert ends_of(refused[0].facts)[:2] == (LOCALHOST, None)
    assert ends_of(refused[1].facts).local_port > 4003, "only the end tells it"
    assert receiver[2].totals == receiver[1].totals == Totals(250, 100, 5, 5)
    assert sender[2].totals == sender[1].totals == Totals(100, 250, 5, 5)
    assert ends_of(sender[0].facts)[2:] == (LOCALHOST6, 4003)
    assert ends_of(receiver[0].facts) == (LOCALHOST6, 4003, None, None)
    owners = {owner_of(e.facts) for e in found if owner_of(e.facts)}
    assert len({owner[:2] for owner in owners}) == 1
    assert {owner[2:] for owner in owners} == {("python", HowKnown.CALL), ("python", HowKnown.CREATOR)}
    assert all(e.final for e in found if isinstance(e, Ended))
    assert [LossMeter().update(one) for one in statistics] == [[], []]
    times = [e.time for e in found if isinstance(e, Ended)]
    assert times == sorted(times)


def shape(story):
    """The order of the sockets in the test: by what happened to them."""
    facts, kinds = story[0].facts, [type(e) for e in story]
    return (
        facts.protocol,
        kinds != [Seen, Established, Ended],
        OwnerSeen not in kinds,
        len(kinds),
        facts.local_port != 4003,
    )


def test_it_is_the_same_in_any_pieces():
    """Record by record, the evidence is that of whole datagrams."""
    whole, _ = told()
    ledger, apart = Ledger(packets=True, births=True), []
    for channel, data in pieces():
        if channel:
            ledger.answer(decode_answer(data))
        else:
            for at in range(0, len(data), 200):
                ledger.receive(data[at : at + 200])
                apart += ledger.take_evidence()
    apart += ledger.take_evidence()
    assert len(apart) == len(whole)
    assert set(apart) == set(whole)
