"""When a second control socket takes over: which of its sources continue which flows.

Two sources are the same kernel socket if the kernel says the same of them: provider,
creation time, owner, addresses. A socket may have been bound, connected or handed over
in between, so weaker signs are tried for what stronger ones left, and only where they
are not ambiguous. Counters are the kernel socket's, not the subscription's, so totals
go on unbroken.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import attrs

from ._counters import advance
from ._source import Source

__all__ = ["carry_on", "pair"]


def pair(
    old: Iterable[Source], new: Iterable[Source]
) -> tuple[list[tuple[Source, Source]], list[Source], list[Source]]:
    """Which sources of two control sockets are the same kernel socket.

    Returns:
        The pairs (old, new), what only the new socket knows, what only the old one did.
    """
    pairs: list[tuple[Source, Source]] = []
    left = [s for s in old if s.reported and s.flow is not None and s.reader.is_flow]
    fresh = list(new)
    for sign, ambiguous in ((_every_sign, True), (_creation, False), (_local_port, False), (_addresses, False)):
        waiting: dict[tuple[Any, ...], list[Source]] = {}
        for source in left:
            if (key := sign(source)) is not None:
                waiting.setdefault(key, []).append(source)
        rivals = Counter(sign(source) for source in fresh)
        unpaired = []
        for source in fresh:
            key = sign(source)
            partners = waiting.get(key, []) if key is not None else []
            if partners and (ambiguous or len(partners) == rivals[key] == 1):
                pairs.append((partners.pop(0), source))
            else:
                unpaired.append(source)
        found = {id(partner) for partner, _ in pairs}
        left, fresh = [source for source in left if id(source) not in found], unpaired
    return pairs, fresh, left


def _every_sign(source: Source) -> tuple[Any, ...] | None:
    flow = source.flow
    if flow is None:
        return None
    owner = flow.process.key if flow.process is not None else None
    return (source.provider_id, source.start_ticks, owner, flow.local, flow.remote)


def _creation(source: Source) -> tuple[Any, ...] | None:
    """The moment of its creation, to the tick: it may have been bound, connected or handed over since."""
    return None if source.start_ticks is None else (source.provider_id, source.start_ticks)


def _local_port(source: Source) -> tuple[Any, ...] | None:
    """Its owner's local port: it may have been connected since."""
    flow = source.flow
    if flow is None or flow.local is None or flow.process is None:
        return None
    return (source.provider_id, source.start_ticks, flow.process.key, flow.local.port)


def _addresses(source: Source) -> tuple[Any, ...] | None:
    """Both ends of a connection, whoever has it now."""
    flow = source.flow
    if flow is None or flow.remote is None:
        return None
    return (source.provider_id, source.start_ticks, flow.local, flow.remote)


def carry_on(old: Source, new: Source) -> bool:
    """Make a source of the new socket carry on a flow of the old one; True if it looks different now."""
    new.id, new.preexisting, new.announced_ns = old.id, old.preexisting, old.announced_ns
    flow, before = new.flow, old.flow
    assert flow is not None
    assert before is not None
    merged = attrs.evolve(
        flow, id=old.id, started_ns=before.started_ns or flow.started_ns, direction=flow.direction or before.direction
    )
    new.flow = before if merged == before else merged
    if old.raw is None or new.raw is None:
        return new.flow is not before or new.raw is not old.raw
    sent, last = new.reader.unpack(new.raw), old.reader.unpack(old.raw)
    values = advance(last if old.corrected is None else old.corrected, last, sent)
    new.corrected = None if values == sent else values
    return new.flow is not before or new.counts != old.counts
