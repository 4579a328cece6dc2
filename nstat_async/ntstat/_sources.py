"""The source table: what the kernel said about each source, turned into events.

Operations and their cost:

- a report of a known source whose flow and counters did not change: one hash of
  the descriptor's identity and two comparisons;
- a report with new counters: one `Counts`, one event;
- a report with a new description: a new `Flow` (ten microseconds);
- memory: one `Source`, its `Flow` and its last counters as the kernel's bytes, about
  1 KiB; owners and interfaces are shared. Sources leave with their goodbye or when
  their absence is proven.

The identity is kept as its hash alone (64 bits, keyed by the process' random seed):
the bytes would be half of a flow's memory, and a collision would cost no more than
one late change of a `Flow`.

Promises to the user, kept here: a flow is added once, then updated, then removed
once; counters never run backwards (`advance`); a flow that ended without its final
counts is followed by `EventsLost`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any

import attrs

from .._events import (
    AnyEvent,
    EventsLost,
    FlowAdded,
    FlowRemoved,
    InterfaceUpdated,
    LossCause,
    RemovalReason,
    RouteUpdated,
    flow_updated,
)
from .._model import Counts, Direction, Flow, Interface, Provider, TcpState
from ._constants import HeaderFlag, LinkStatus
from ._counters import Raw, Values, make_counts, raw_values, set_values, unpacked
from ._kernels import Kernel
from ._layouts import StructCodec, layout
from ._tables import NEWEST
from ._translate import DescriptorReader, RawDetails, Translator, decode_endpoint, interface_kind, text

__all__ = ["MAX_MISSING", "Source", "SourceTable", "advance"]

MAX_MISSING = 65_536
"""Reference numbers remembered as not yet seen; more are only counted."""

_CLOSING = int(HeaderFlag.CLOSING)
_TCP_STABLE_PREFIX = 260
"""TCP descriptor bytes that kernels newer than known kept in place (through ``pname``)."""
_UDP_STABLE_PREFIX = 196
_UNKNOWN_COUNTS = Counts()
_GROWING = struct.Struct("<4Q48x3I").unpack_from
"""Of packed counters those whose growth is checked: packets, bytes, and the three that wrap."""

_new = object.__new__


@attrs.define(eq=False, weakref_slot=False)
class Source:
    """One source of the kernel."""

    ref: int
    id: str
    reader: DescriptorReader | None
    provider_id: int | None
    preexisting: bool
    span: int = -1
    """Length of the descriptor that `reader` was chosen for."""
    flow: Flow | None = None
    identity: int | bytes | None = None
    """Hash of the descriptor's part that makes `flow`; the whole descriptor of routes and interfaces, which have none."""
    raw: Raw | None = None
    """Counters as last sent."""
    counts: Counts | None = None
    """Counters as last told: never below earlier ones."""
    raw_details: RawDetails | None = None
    reported: bool = False
    """FlowAdded was emitted."""
    closing: bool = False
    """The final counters came."""
    unsolicited: int = 0
    """Old kernels: 1 after unsolicited counts, 2 after the description that follows: a goodbye."""
    seen: int = 0
    """Serial number of the last poll that reported it."""
    born: int = 0
    """Serial number of the last poll that had begun when it was announced."""
    missed: int = 0
    """Polls in a row that did not."""
    announced_ns: int | None = None
    """When SRC_ADDED came."""
    start_ticks: int | None = None
    """Creation of the socket on the kernel's clock: tells the same socket on another control socket."""


def _has_grown(new: Values, old: Values) -> bool:
    """True when no counter of a kernel's source is less than before."""
    return all(new[p] >= old[p] for p in (0, 1, 2, 3, 10, 11, 12))


def _packed_has_grown(new: bytes, old: bytes) -> bool:
    """The same for packed counters: a loop would take three times as long."""
    a, b, c, d, e, f, g = _GROWING(new)
    h, i, j, k, m, n, o = _GROWING(old)
    return bool(b >= i and d >= k and a >= h and c >= j and e >= m and f >= n and g >= o)


def _has_grown_whole(new: Values, old: Values) -> bool:
    """The same for numbers that a process wrote, which need not agree with each other."""
    return new[10:13] == old[10:13] and all(
        a is not None and b is not None and a >= b for a, b in zip(new[:10], old[:10], strict=True)
    )


def advance(told: Values, old: Values, new: Values) -> Values:
    """The counters to tell when the raw ones do not simply grow.

    - u32 byte counters of TCP (positions 10 to 12) wrap at 4 GiB: their growth is
      taken modulo 2^32, unless it is so large, or the bytes fell with it, that the
      counter must have fallen.
    - All others keep their highest value: xnu-1699 reports zero while a socket is
      closed (``nstat_tcp_counts``), and user-land processes write what they like.
    """
    values = list(new)
    fell = new[1] < old[1] or new[3] < old[3]
    for position in range(10):
        if new[position] is not None and told[position] is not None:
            values[position] = max(new[position], told[position])
    for position in (10, 11, 12):
        if new[position] is not None and told[position] is not None:
            growth = (
                (new[position] - old[position]) & 0xFFFFFFFF
                if old[position] < 1 << 32
                else new[position] - old[position]
            )
            values[position] = told[position] + (growth if 0 <= growth < 1 << 31 and not fell else 0)
    return tuple(values)


class SourceTable:
    """The sources of one control socket.

    Args:
        translator: Shared with the session.
        emit: Where events go.
        prefix: Makes flow ids of this socket unlike those of another one.
        every_update: Emit an update for each report, changed or not.
    """

    def __init__(
        self,
        translator: Translator,
        emit: Callable[[AnyEvent], None],
        *,
        prefix: str,
        every_update: bool = False,
    ) -> None:
        self.translator = translator
        self.kernel: Kernel = translator.kernel
        self.emit = emit
        self.prefix = prefix
        self.every_update = every_update
        self.sources: dict[int, Source] = {}
        self.time = 0.0
        """Wall clock of the datagram at hand, seconds."""
        self.time_ns = 0
        self.muted = False
        """True while the table is only being filled (a second socket during a resynchronisation)."""
        self.scanning = False
        """True while the kernel lists the existing sources of a provider."""
        self.baseline = False
        """True until the first poll is over."""
        self.subscribed_ns: int | None = None
        """Wall clock of the subscription: flows that began before are pre-existing."""
        self.poll_serial = 0
        self.poll_seen = 0
        """Distinct sources that the current poll reported."""
        self.accounting = False
        """True when every reference number is known to mean a source (no filter set)."""
        self.unfiltered = False
        """True when no filter of ours holds a report back: a goodbye without one is a loss."""
        self.top = 0
        """Highest reference that a source had."""
        self.highest: int | None = None
        self.missing: set[int] = set()
        """References below `highest` that neither reported nor said goodbye."""
        self.forgotten = 0
        """Further ones, skipped when `missing` was full: known by number only."""
        self.given_up: set[int] = set()
        """References that the client asked the kernel to remove."""
        self.quiet_goodbyes = False
        """True when the client hides silent sources: flag 8 is then no loss."""
        self.proven: dict[tuple[str, int], StructCodec] = {}
        """Structure name and length to the structure that a live check has proven."""
        self.statistics = dict.fromkeys(
            (
                "sources_seen",
                "flows_added",
                "flows_removed",
                "unknown_lengths",
                "unknown_references",
                "counters_adjusted",
            ),
            0,
        )
        self._serial = 0
        self._readers: dict[tuple[int | None, int], DescriptorReader] = {}
        self._listening: dict[int, int] = {}
        self._warned: set[tuple[int, int]] = set()
        self._added_none: dict[int | None, DescriptorReader] = {}

    # --- entry points: one per message ------------------------------------

    def begin(self, time: float) -> None:
        """A datagram that arrived at this wall-clock time is about to be reported."""
        self.time = time
        self.time_ns = int(time * 1e9)

    def added(self, ref: int, provider_id: int, *, requested: bool) -> Source:
        """SRC_ADDED."""
        source = self.sources.get(ref)
        if source is not None and not source.reported:
            return source
        if source is not None:
            # Narrow references wrap around: the old bearer must have gone unheard.
            self.gone(source)
        source = self._create(ref, provider_id, preexisting=self.scanning and not requested)
        source.announced_ns = self.time_ns
        source.born = self.poll_serial
        return source

    def counted(self, ref: int, raw: Raw, flags: int, solicited: bool) -> None:
        """SRC_COUNTS."""
        source = self.sources.get(ref)
        if source is None:
            self.statistics["unknown_references"] += 1
            source = self._create(ref, None, preexisting=self.baseline)
        if source.seen != self.poll_serial:
            source.seen = self.poll_serial
            self.poll_seen += 1
        reader = source.reader
        if reader is not None and not reader.is_flow:
            self._take(source, raw)
            self._other(source, removed=False)
            return
        previous = source.counts
        had_raw = source.raw is not None
        changed = raw != source.raw and self._take(source, raw)
        if flags & _CLOSING:
            source.closing = True
        if not solicited:
            source.unsolicited = 1
        if not source.reported:
            # The description usually follows; a second reading without one means
            # that nobody asks for it, and then the flow is told as it is.
            if had_raw and source.flow is None and not flags & _CLOSING:
                self._add(source)
            return
        if changed or self.every_update:
            self._updated(source, previous)

    def described(self, ref: int, provider_id: int, data: bytes, at: int, end: int, flags: int) -> None:
        """SRC_DESC."""
        source = self.sources.get(ref)
        if source is None:
            source = self._create(ref, provider_id, preexisting=self.baseline)
        if source.seen != self.poll_serial:
            source.seen = self.poll_serial
            self.poll_seen += 1
        if source.unsolicited == 1:
            source.unsolicited = 2
        reader = source.reader if source.span == end - at else self._choose(source, provider_id, data, at, end)
        assert reader is not None
        if not reader.is_flow:
            source.identity = data[at:end]
            if source.raw is not None:
                self._other(source, removed=False)
            return
        identity = hash(reader.identity(data, at))
        source.raw_details = RawDetails(reader, data[at:end], b"", self.time_ns)
        changed = identity != source.identity and self._redescribe(source, reader, identity, data, at, end)
        if not source.reported:
            self._add(source)
        elif changed and not (flags & _CLOSING or source.closing or source.unsolicited == 2):
            self._updated(source, source.counts)

    def updated(
        self, ref: int, provider_id: int, raw: Raw, data: bytes, at: int, end: int, flags: int, items: bytes = b""
    ) -> None:
        """SRC_UPDATE and its variants: the hot path."""
        source = self.sources.get(ref)
        if source is None:
            source = self._create(ref, provider_id, preexisting=self.baseline)
        if source.seen != self.poll_serial:
            source.seen = self.poll_serial
            self.poll_seen += 1
        reader = source.reader if source.span == end - at else self._choose(source, provider_id, data, at, end)
        assert reader is not None
        if not reader.is_flow:
            source.identity = data[at:end]
            self._take(source, raw)
            self._other(source, removed=False)
            return
        identity = hash(reader.identity(data, at))
        same = identity == source.identity
        old = source.raw
        if same and raw == old and source.reported and not self.every_update:
            if flags & _CLOSING:
                source.closing = True
                source.raw_details = RawDetails(reader, data[at:end], items, self.time_ns)
            return
        previous = source.counts
        changed = raw != old and self._take(source, raw)
        if not same:
            same = not self._redescribe(source, reader, identity, data, at, end)
        if flags & _CLOSING:
            source.closing = True
        details = RawDetails(reader, data[at:end], items, self.time_ns)
        if not source.reported:
            source.raw_details = details
            self._add(source)
        elif (changed or self.every_update or (not same and not source.closing)) and not self.muted:
            self.emit(flow_updated(self.time, source.flow, source.counts, previous, details))  # type: ignore[arg-type]
        if source.closing:
            source.raw_details = details

    def removed(self, ref: int, flags: int) -> None:
        """SRC_REMOVED."""
        source = self.sources.get(ref)
        if source is None:
            self._unseen_goodbye(ref, flags)
            return
        if flags & HeaderFlag.CLOSED_AFTER_FILTER:
            reason = RemovalReason.FILTERED
        elif flags & HeaderFlag.CLOSED_AFTER_DROP:
            reason = RemovalReason.DROPPED
        elif flags & HeaderFlag.CLOSED_AFTER_GONE:
            reason = RemovalReason.GONE
        elif ref in self.given_up:
            reason = RemovalReason.MONITOR
        else:
            reason = RemovalReason.CLOSED
        self.remove(source, reason)

    def remove(self, source: Source, reason: RemovalReason) -> None:
        """Take a source out of the picture and say so."""
        if self.sources.pop(source.ref, None) is not None and source.seen == self.poll_serial:
            self.poll_seen -= 1
        self.given_up.discard(source.ref)
        self._forget_listener(source.flow)
        if source.reader is not None and not source.reader.is_flow:
            self._other(source, removed=True)
            return
        if not source.reported:
            self._add(source)
        self.statistics["flows_removed"] += 1
        if self.muted:
            return
        final = source.counts is not None and (source.closing or source.unsolicited == 2)
        assert source.flow is not None
        self.emit(FlowRemoved(self.time, source.flow, source.counts, final, reason, source.raw_details))
        if not final and reason is not RemovalReason.MONITOR:
            self.emit(
                EventsLost(
                    self.time, LossCause.FINAL_COUNTS, 1, detail=f"flow {source.id} ended without its final counts"
                )
            )

    def gone(self, source: Source) -> None:
        """A source is proven absent, its goodbye was lost."""
        self.remove(source, RemovalReason.GONE)

    def finish(self) -> None:
        """Nothing follows: tell the flows that were announced and never described."""
        for source in list(self.sources.values()):
            if not source.reported and (source.reader is None or source.reader.is_flow):
                self._add(source)

    def restart(self, prefix: str) -> None:
        """The same client speaks over another control socket: references begin anew.

        Open flows leave the picture, since nobody observes them through the old socket any more.
        """
        for source in list(self.sources.values()):
            self.remove(source, RemovalReason.MONITOR)
        self.prefix = prefix
        self.top = 0
        self.highest = None
        self.missing.clear()
        self.forgotten = 0
        self.given_up.clear()
        self.poll_seen = 0

    # --- polls -------------------------------------------------------------

    def poll_begins(self) -> None:
        """From now on reports belong to a new poll."""
        self.poll_serial += 1
        self.poll_seen = 0

    def absent(self) -> list[Source]:
        """Sources that the poll which just ended did not report, though they were there when it began."""
        if self.poll_seen >= len(self.sources):
            return []
        serial = self.poll_serial
        return [s for s in self.sources.values() if serial not in {s.seen, s.born}]

    def flows(self) -> Iterator[tuple[Flow, Counts | None]]:
        """The flows that were told, with their last counts."""
        for source in list(self.sources.values()):
            if source.reported and source.flow is not None:
                yield source.flow, source.counts

    def prove(self, codecs: dict[tuple[str, int], StructCodec]) -> None:
        """From now on read these structures as proven; every flow is read anew at its next report."""
        self.proven.update(codecs)
        self._readers.clear()
        for source in self.sources.values():
            source.span = -1

    # --- making ------------------------------------------------------------

    def _create(self, ref: int, provider_id: int | None, *, preexisting: bool) -> Source:
        is_new = ref > self.top or ref in self.missing
        self.top = max(self.top, ref)
        self._note_reference(ref)
        self.statistics["sources_seen"] += 1
        identifier = f"{self.prefix}{ref}"
        if not self.kernel.references_are_gapless or not is_new:
            # The number may have had another bearer, whose id must not come back.
            self._serial += 1
            identifier = f"{identifier}.{self._serial}"
        source = Source(ref, identifier, self._bare_reader(provider_id), provider_id, preexisting)
        self.sources[ref] = source
        return source

    def _note_reference(self, ref: int) -> None:
        if not self.accounting:
            return
        highest = self.highest
        if highest is None or ref > highest:
            first = 1 if highest is None else highest + 1
            if len(self.missing) + ref - first <= MAX_MISSING:
                self.missing.update(range(first, ref))
            else:
                self.forgotten += ref - first
            self.highest = ref
        else:
            self.missing.discard(ref)

    def _unseen_goodbye(self, ref: int, flags: int) -> None:
        self._note_reference(ref)
        self.given_up.discard(ref)
        lost = flags & HeaderFlag.CLOSED_AFTER_DROP and not self.quiet_goodbyes
        unexplained = not self.kernel.explains_removal and (self.accounting or self.unfiltered)
        if (lost or unexplained) and not self.muted:
            self.emit(EventsLost(self.time, LossCause.GOODBYE, 1, detail="a flow came and went unreported"))

    def _bare_reader(self, provider_id: int | None) -> DescriptorReader:
        """The reader of a source that has no description yet; one for all unknown providers."""
        if provider_id not in self.kernel.providers:
            provider_id = None
        reader = self._added_none.get(provider_id)
        if reader is None:
            provider, userland = self._provider(provider_id)
            reader = DescriptorReader(
                self.translator, -1 if provider_id is None else provider_id, provider, userland, None
            )
            self._added_none[provider_id] = reader
        return reader

    def _provider(self, provider_id: int | None) -> tuple[Provider, bool | None]:
        if provider_id is None:
            return Provider.UNKNOWN, None
        return self.kernel.providers.get(provider_id, (Provider.UNKNOWN, None))

    def _choose(self, source: Source, provider_id: int, data: bytes, at: int, end: int) -> DescriptorReader:
        """Pick the reader for a descriptor of this length and remember it with the source."""
        key = (provider_id, end - at)
        reader = self._readers.get(key)
        if reader is None:
            reader = self._readers[key] = self._make_reader(provider_id, end - at)
            if len(self._readers) > 1024:
                self._readers.clear()  # only garbage has so many lengths
        if (
            self.kernel.version[0] == 3789
            and provider_id == 3
            and reader.codec is not None
            and not reader.state_is_sane(data, at)
        ):
            # xnu-3789 announces user-land UDP flows that appear later as user-land TCP,
            # with the UDP descriptor padded to TCP's length; UDP has no state there.
            reader = self._misnamed_udp()
        elif reader.doubtful and not reader.looks_sane(data, at):
            reader = self._bare_reader(provider_id)
        if source.reported and not reader.is_flow:
            self._retract(source)
        source.reader, source.span, source.provider_id = reader, end - at, provider_id
        source.identity = None
        return reader

    def _retract(self, source: Source) -> None:
        """What only its counters made known, and so was told as a flow, is a route or an interface."""
        source.reported = False
        flow, source.flow = source.flow, None
        self._serial += 1
        source.id = f"{self.prefix}{source.ref}.{self._serial}"  # should it be told as a flow once more
        if not self.muted and flow is not None:
            self.statistics["flows_removed"] += 1
            self.emit(FlowRemoved(self.time, flow, source.counts, final=False, reason=RemovalReason.MONITOR))

    def _misnamed_udp(self) -> DescriptorReader:
        key = (3, -1)
        reader = self._readers.get(key)
        if reader is None:
            codec = self.kernel.layout["nstat_udp_descriptor"]
            reader = self._readers[key] = DescriptorReader(self.translator, 5, Provider.UDP, True, codec)
        return reader

    def _make_reader(self, provider_id: int, length: int) -> DescriptorReader:
        provider, userland = self._provider(provider_id)
        name = self.kernel.descriptor_name(provider_id)
        codec = self.kernel.layout.find(name) if name is not None else None
        trusted: int | None = None
        doubtful = False
        proven = self.proven.get((name or "", length))
        if proven is not None:
            return DescriptorReader(self.translator, provider_id, provider, userland, proven)
        if codec is not None and name is not None and length != codec.size:
            self._length_surprise(provider_id, codec.size, length)
            other = next(
                (c for n in range(NEWEST, 6, -1) if (c := layout(n).find(name)) is not None and c.size == length), None
            )
            if other is not None and self.kernel.layout.number >= 7:
                codec = other
            elif length < codec.size:
                codec = None
            elif not self.kernel.known:
                # What follows the name moved in the newest kernels: believe it only when proven,
                # and what is before it only when it looks like what it should be.
                doubtful = True
                trusted = {Provider.TCP: _TCP_STABLE_PREFIX, Provider.QUIC: _TCP_STABLE_PREFIX}.get(
                    provider, _UDP_STABLE_PREFIX if name == "nstat_udp_descriptor" else None
                )
        return DescriptorReader(self.translator, provider_id, provider, userland, codec, trusted, doubtful=doubtful)

    def _length_surprise(self, provider_id: int, expected: int, length: int) -> None:
        key = (provider_id, length)
        if key in self._warned or len(self._warned) > 256:
            return
        self._warned.add(key)
        self.statistics["unknown_lengths"] += 1
        if length < expected and not self.muted:
            detail = f"descriptor of provider {provider_id} has {length} bytes, expected {expected}: not read"
            self.emit(EventsLost(self.time, LossCause.PROTOCOL, None, detail=detail))

    # --- changing ----------------------------------------------------------

    def _take(self, source: Source, raw: Raw) -> bool:
        """Remember counters that differ from the last; True if what the user sees changed."""
        old: Any = source.raw
        told = source.counts
        reader: DescriptorReader = source.reader  # type: ignore[assignment]  # chosen before
        source.raw = raw
        if (
            told.__class__ is reader.growing_class
            and told._values is old  # noqa: SLF001
            and raw.__class__ is bytes
            and _packed_has_grown(raw, old)  # type: ignore[arg-type]  # bytes, in this class
        ):
            source.counts = counts = _new(told.__class__)
            set_values(counts, raw)
            return True
        if old is None or told is None:
            source.counts = make_counts(reader, raw)
            return True
        before = raw_values(told)
        if raw == old and reader.made(told):
            return False
        sent, last, shown = unpacked(raw), unpacked(old), unpacked(before)
        if before is old and (_has_grown_whole if reader.self_reported else _has_grown)(sent, last):
            source.counts = make_counts(reader, raw)
            return True
        values = advance(shown, last, sent)
        if values != sent:
            self.statistics["counters_adjusted"] += 1
        source.counts = make_counts(reader, raw if values == sent else values)
        return values != shown

    def _redescribe(
        self,
        source: Source,
        reader: DescriptorReader,
        identity: int,
        data: bytes,
        at: int,
        end: int,
    ) -> bool:
        """Make the flow anew; False if it turns out the same."""
        source.identity = identity
        before = source.flow
        flow = reader.flow(
            source.id, data, at, end, time_ns=self.time_ns, previous=before, inbound_ports=self._is_listening
        )
        source.start_ticks = reader.start_ticks(data, at)
        if flow.started_ns is None and source.announced_ns is not None and not source.preexisting:
            flow = attrs.evolve(flow, started_ns=source.announced_ns)
        different = flow != before
        if different:
            source.flow = flow
        if flow.direction is Direction.LISTENER or (before is not None and before.direction is Direction.LISTENER):
            self._forget_listener(before)
            self._remember_listener(flow)
        if source.counts is not None and source.raw is not None and not reader.made(source.counts):
            source.counts = make_counts(reader, raw_values(source.counts))
        return different

    def _add(self, source: Source) -> None:
        if source.flow is None:
            reader = source.reader
            assert reader is not None
            started = None if source.preexisting else source.announced_ns
            source.flow = Flow(
                source.id, reader.provider, reader.userland, started_ns=started, provider_id=source.provider_id
            )
        flow = source.flow
        if self.subscribed_ns is not None and flow.started_ns is not None and source.announced_ns is None:
            source.preexisting = flow.started_ns < self.subscribed_ns
        source.reported = True
        if not self.muted:
            self.statistics["flows_added"] += 1
            self.emit(FlowAdded(self.time, flow, source.counts, source.preexisting, source.raw_details))
        source.raw_details = None

    def _updated(self, source: Source, previous: Counts | None) -> None:
        if self.muted or source.flow is None:
            return
        counts = source.counts if source.counts is not None else _UNKNOWN_COUNTS
        self.emit(flow_updated(self.time, source.flow, counts, previous, source.raw_details))
        source.raw_details = None

    # --- listeners of kernels that do not tell the direction ----------------

    def _is_listening(self, port: int) -> bool:
        return port in self._listening

    def _remember_listener(self, flow: Flow) -> None:
        if flow.state is not TcpState.LISTEN or flow.local is None or not flow.local.port:
            return
        port = flow.local.port
        known = port in self._listening
        self._listening[port] = self._listening.get(port, 0) + 1
        if known or flow.userland:
            return
        for source in self.sources.values():
            # Polls come newest first, so connections are often read before their listener.
            other = source.flow
            if (
                other is not None
                and other.direction is Direction.OUTBOUND
                and other.local is not None
                and other.local.port == port
                and other.state is not TcpState.SYN_SENT
                and not self._has_roles()
            ):
                source.flow = attrs.evolve(other, direction=Direction.INBOUND)
                if source.reported:
                    self._updated(source, source.counts)

    def _has_roles(self) -> bool:
        return self.kernel.version >= (10002,)

    def _forget_listener(self, flow: Flow | None) -> None:
        if flow is None or flow.direction is not Direction.LISTENER or flow.local is None:
            return
        left = self._listening.get(flow.local.port, 0) - 1
        if left > 0:
            self._listening[flow.local.port] = left
        else:
            self._listening.pop(flow.local.port, None)

    # --- routes and interfaces ----------------------------------------------

    def _other(self, source: Source, *, removed: bool) -> None:
        reader = source.reader
        descriptor = source.identity
        if self.muted or reader is None or not isinstance(descriptor, bytes) or reader.codec is None:
            return
        fields: dict[str, Any] = reader.fields(descriptor, 0, len(descriptor))
        counts = source.counts if source.counts is not None else _UNKNOWN_COUNTS
        if reader.provider is Provider.ROUTE:
            self.emit(
                RouteUpdated(
                    self.time,
                    source.id,
                    decode_endpoint(fields["dst"]),
                    decode_endpoint(fields["mask"]),
                    decode_endpoint(fields["gateway"]),
                    self.translator.interface(fields["ifindex"], None),
                    fields["flags"],
                    counts,
                    removed,
                )
            )
        elif not removed:
            self.emit(self._interface_event(fields, counts, [f.name for f in reader.codec.fields]))

    def _interface_event(self, fields: dict[str, Any], counts: Counts, names: list[str]) -> InterfaceUpdated:
        kind = interface_kind(fields.get("ifnet_properties"))
        interface = Interface(fields["ifindex"], text(fields["name"]), kind)
        link: tuple[tuple[str, int], ...] = ()
        block = {LinkStatus.CELLULAR: "cellular", LinkStatus.WIFI: "wifi"}.get(
            fields.get("link_status.link_status_type", 0)
        )
        if block is not None:
            at = f"link_status.u.{block}."
            valid = fields[at + "valid_bitmask"]
            order = [n[len(at) :] for n in names if n.startswith(at) and not n.endswith("valid_bitmask")]
            link = tuple((n, fields[at + n]) for i, n in enumerate(_valid_order(block, order)) if valid >> i & 1)
        return InterfaceUpdated(
            self.time, interface, counts, text(fields["description"]), fields["threshold"] or None, link
        )


def _valid_order(block: str, names: list[str]) -> list[str]:
    """Field names in the order of their validity bits (``NSTAT_IFNET_DESC_…_VALID``)."""
    if block == "wifi" and "ul_error_rate" in names:
        # Bytes lost has the higher bit though it lies before the error rate.
        lost, rate = names.index("ul_bytes_lost"), names.index("ul_error_rate")
        names[lost], names[rate] = names[rate], names[lost]
    return names
