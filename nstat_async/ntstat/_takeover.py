"""A second control socket: compares what it sees with the first one, and takes over.

Two sources are the same kernel socket if the kernel says the same about them: provider,
creation time, owner, addresses. A socket may have been bound, connected or handed over
in between. So weaker signs are used for the sources that stronger ones did not match, if they
are not ambiguous. Before xnu-4570 there is no creation time to tell sockets of the same owner
and addresses apart; their counters do, because these never fall. Counters belong to the kernel
socket, not to the subscription, so totals continue.

Ends reach each control socket at its own time while they are compared. So sources that left
a table meanwhile are compared too: a flow ends once, with its final counts, whichever socket
heard of the end first.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Collection, Iterable
from functools import partial
from typing import Any

import attrs

from .._events import RemovalReason
from .._model import Direction, Provider, TcpState
from ._counters import advance
from ._source import AWAITED, Source
from ._sources import SourceTable
from ._subscription import Subscription


class Stage(enum.Enum):
    """What a second control socket does."""

    LISTING = "listing"
    """It subscribes, and polls for the first time."""
    WAITING = "waiting"
    """It waits for a poll of the first socket, after which everything that one got earlier is read."""
    REPEATING = "repeating"
    """It polls again, so that it knows everything that the first socket knows, and then takes over."""


@attrs.define(eq=False)
class SecondSocket:
    """A second control socket of the session.

    An *audit* checks whether the first one misses anything: if so, it takes over; otherwise it is closed.
    """

    subscription: Subscription
    audit: bool
    stage: Stage = Stage.LISTING
    barrier: int = 0
    """Serial of the first socket's poll that it waits for."""
    top: int = 0
    """Its highest reference when that poll began: sources above it may be younger than the poll."""
    poll_at: float | None = None
    """When to poll again, after a poll that the kernel could not answer."""


@attrs.frozen
class Comparison:
    """The flows of two control sockets."""

    both: list[tuple[Source, Source]]
    """(old, new): flows that are open for both."""
    ended: list[tuple[Source, Source, RemovalReason]]
    """(old, new, reason): flows whose end the new socket has heard of; `new` has the final counts."""
    outlived: list[Source]
    """Sources of the new socket whose end the old one has heard of."""
    fresh: list[Source]
    """Sources that only the new socket knows."""
    passed: list[tuple[Source, RemovalReason]]
    """Sources that only the new socket knew, and that have ended."""
    vanished: list[Source]
    """Sources that only the old socket knows."""

    def missed_up_to(self, top: int) -> int:
        """Number of flows with references up to this one that the old socket never knew."""
        missed = [*self.fresh, *(source for source, _ in self.passed)]
        known = [*self.both, *((old, new) for old, new, _ in self.ended)]
        missed.extend(new for old, new in known if old.seen == AWAITED)
        return sum(1 for source in missed if source.ref <= top and source.reported)

    def is_cut_short(self, serial: int) -> bool:
        """True if the new socket lacks an open flow that this poll of the old one reported."""
        states = [s.flow.state for s in self.vanished if s.seen == serial and s.flow is not None]
        return any(state is not TcpState.TIME_WAIT for state in states)


def compare(old: SourceTable, new: SourceTable) -> Comparison:
    """Compare the flows of two control sockets."""
    ended, gone = dict(old.departed or ()), dict(new.departed or ())
    pairs, fresh, left = pair(
        [*old.sources.values(), *old.awaited.values(), *ended], [*new.sources.values(), *gone], {*ended, *gone}
    )
    return Comparison(
        both=[(a, b) for a, b in pairs if a not in ended and b not in gone],
        ended=[(a, b, gone[b]) for a, b in pairs if a not in ended and b in gone],
        outlived=[b for a, b in pairs if a in ended and b not in gone],
        fresh=[b for b in fresh if b not in gone],
        passed=[(b, gone[b]) for b in fresh if b in gone],
        vanished=[a for a in left if a not in ended],
    )


def pair(
    old: Iterable[Source], new: Iterable[Source], gone: Collection[Source] = ()
) -> tuple[list[tuple[Source, Source]], list[Source], list[Source]]:
    """Find the sources of two control sockets that are the same kernel socket.

    Args:
        old: Sources of the first one.
        new: Sources of the second one.
        gone: The sources of both that have ended: of several that look alike, open ones are paired with open ones.

    Returns:
        The pairs (old, new), the sources that only the new socket has, and those that only the old one has.
    """
    pairs: list[tuple[Source, Source]] = []
    left = [s for s in old if s.reported and s.flow is not None and s.reader.is_flow]
    fresh = sorted(new, key=_traffic, reverse=True)
    for sign, ambiguous in _SIGNS:
        waiting: dict[tuple[Any, ...], list[Source]] = {}
        for source in left:
            if (key := sign(source)) is not None:
                waiting.setdefault(key, []).append(source)
        rivals = Counter(sign(source) for source in fresh)
        unpaired = []
        for source in fresh:
            key = sign(source)
            partners = waiting.get(key, []) if key is not None else []
            partner = _partner(partners, source, gone, rivals=rivals[key], ambiguous=ambiguous)
            if partner is None:
                unpaired.append(source)
            else:
                partners.remove(partner)
                pairs.append((partner, source))
        found = {partner for partner, _ in pairs}
        left, fresh = [source for source in left if source not in found], unpaired
    return pairs, fresh, left


def _partner(
    partners: list[Source], source: Source, gone: Collection[Source], *, rivals: int, ambiguous: bool
) -> Source | None:
    """The partner of a source among those with the same sign; `rivals` other sources of its own socket have that sign too."""
    if len(partners) == rivals == 1 and not _contradict(partners[0], source):
        return partners[0]
    return _nearest(partners, source, gone) if ambiguous else None


def _contradict(one: Source, other: Source) -> bool:
    """True if two sources cannot be the same socket: a local port does not change, nor does the peer of TCP."""
    a, b = one.flow, other.flow
    assert a is not None
    assert b is not None
    if a.local is not None and b.local is not None and a.local.port and b.local.port and a.local.port != b.local.port:
        return True
    return a.provider is Provider.TCP and None not in {a.remote, b.remote} and a.remote != b.remote


def _traffic(source: Source) -> tuple[int, ...]:
    """Packets and bytes, to compare the traffic of sources."""
    return (0, 0, 0, 0) if source.raw is None else tuple(source.reader.unpack(source.raw)[:4])


def _nearest(partners: list[Source], source: Source, gone: Collection[Source]) -> Source | None:
    """The partner with the highest counters that do not exceed the source's; one that has ended only if the source has, if possible."""
    now = _traffic(source)
    before = [p for p in partners if all(a <= b for a, b in zip(_traffic(p), now, strict=True))]
    return max(before, key=lambda partner: ((partner in gone) is (source in gone), _traffic(partner)), default=None)


def _kind(source: Source) -> tuple[Any, ...]:
    """The kind of a source by its description, because xnu-3789 announces late user-land UDP under another number."""
    return source.reader.provider, source.reader.userland


def _every_sign(source: Source) -> tuple[Any, ...] | None:
    flow = source.flow
    if flow is None:
        return None
    owner = flow.process.key if flow.process is not None else None
    return (*_kind(source), source.start_ticks, owner, flow.local, flow.remote)


def _creation(source: Source) -> tuple[Any, ...] | None:
    """The creation time to the tick: the socket may have been bound, connected or handed over since."""
    return None if source.start_ticks is None else (*_kind(source), source.start_ticks)


def _local_port(source: Source) -> tuple[Any, ...] | None:
    """The owner and the local port: the socket may have been connected since."""
    flow = source.flow
    if flow is None or flow.local is None or flow.process is None:
        return None
    return (*_kind(source), source.start_ticks, flow.process.key, flow.local.port)


def _addresses(source: Source) -> tuple[Any, ...] | None:
    """Both ends of a connection: another process may have it now."""
    flow = source.flow
    if flow is None or flow.remote is None:
        return None
    return (*_kind(source), source.start_ticks, flow.local, flow.remote)


_SIGNS = ((_every_sign, True), (_creation, False), (_local_port, False), (_addresses, False))
"""Signs that two sources are one kernel socket, the strongest first; True if counters decide between several that look alike."""


def continue_flows(old: SourceTable, table: SourceTable, found: Comparison, awaited: Iterable[Source] = ()) -> None:
    """Continue the flows of the old control socket on the new one, and report what differs.

    Args:
        old: Table of the old one.
        table: Table of the new one.
        found: The comparison of both.
        awaited: Flows that only the old one knew, and that may be alive.
    """
    alike: dict[tuple[Any, ...] | None, list[Source]] = {}
    for source in awaited:
        source.seen = AWAITED
        table.awaited[source.id] = source
        for sign, _ in _SIGNS:
            alike.setdefault(sign(source), []).append(source)
    table.recognise = partial(_recognise, table, alike)
    table.remember_ends(wanted=False)
    for before, source in found.both:
        if _carry_on(before, source) and source.flow is not None:
            table.announce_update(source, before.counters)
    for before, source, reason in found.ended:
        _carry_on(before, source)
        table.report_end(source, reason)
    for source in found.vanished:
        if source.seen != AWAITED:
            old.remove(source, RemovalReason.GONE)
    for source in found.outlived:
        table.hide(source)
    for source in (*found.fresh, *(source for source, _ in found.passed)):
        source.preexisting = table.is_older(source.flow, old.watching)
        if source.reported:
            table.announce_added(source)
    for source, reason in found.passed:
        table.report_end(source, reason)


def _recognise(table: SourceTable, alike: dict[tuple[Any, ...] | None, list[Source]], source: Source) -> bool:
    """Continue an awaited flow by a new source, if one has a sign in common with it; True if so."""
    if source.identity is None:
        return False
    for sign, ambiguous in _SIGNS:
        key = sign(source)
        partners = [each for each in alike.get(key, ()) if each.id in table.awaited] if key is not None else []
        before = _partner(partners, source, (), rivals=1, ambiguous=ambiguous)
        if before is not None:
            del table.awaited[before.id]
            source.reported = True
            if _carry_on(before, source):
                table.announce_update(source, before.counters)
            return True
    return False


def _carry_on(old: Source, new: Source) -> bool:
    """Make a source of the new socket continue a flow of the old one; True if the flow changed."""
    new.id, new.preexisting, new.announced_ns = old.id, old.preexisting, old.announced_ns
    new.measured = old.measured
    flow, before = new.flow, old.flow
    assert flow is not None
    assert before is not None
    direction = flow.direction or before.direction
    if before.direction is Direction.INBOUND and not new.reader.translator.kernel.tells_roles:
        direction = before.direction  # the new socket has not seen the listener if that is gone
    merged = attrs.evolve(flow, id=old.id, started_ns=before.started_ns or flow.started_ns, direction=direction)
    new.flow = before if merged == before else merged
    if new.raw is None:  # the new socket has no counters yet: the flow keeps those that were reported
        new.raw, new.corrected = old.raw, old.corrected
        return new.flow is not before
    if old.raw is None:
        return True
    sent, last = new.reader.unpack(new.raw), old.reader.unpack(old.raw)
    values = advance(last if old.corrected is None else old.corrected, last, sent)
    new.corrected = None if values == sent else values
    new.judge()
    return new.flow is not before or new.counts != old.counts
