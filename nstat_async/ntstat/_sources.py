"""The source table: turns what the kernel said about each source into events.

Operations and their costs:

- a report of a known source whose flow and counters did not change: one hash of
  the descriptor's identity and two comparisons (`Decoder.decode` makes them);
- a report with new counters: one event, which keeps them as sent;
- a report with a new description: a new `Flow` (ten microseconds);
- memory: one `Source`, its `Flow` and its last counters as the kernel's bytes, about
  1 KiB; owners and interfaces are shared. A source leaves with its removal, or when
  its absence is proven; there are never more than `MAX_SOURCES`.

Only a hash of the identity is kept (64 bits, keyed by the process' random seed). The
bytes would be half of a flow's memory, and a collision would only delay one
change of a `Flow`.

Promises to the user that are kept here: a flow is added once, then updated, then removed
once; counters never fall (`advance`); an `EventsLost` comes with a flow that ended
without its final counts.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import attrs

from .._events import AnyEvent, EventsLost, FlowRemoved, LossCause, RemovalReason, flow_updated
from .._making import flow_added
from .._model import COUNTS_FIELDS, Counts, Direction, Endpoint, Flow, TcpState
from ._constants import HeaderFlag
from ._counters import Raw, advance, has_grown, has_grown_whole
from ._coverage import CoverageMeter
from ._descriptors import DescriptorReader
from ._layouts import StructCodec
from ._others import other_event
from ._outcomes import ended
from ._readers import Readers
from ._references import References
from ._source import UNCHOSEN, Phase, Source, Terms, new_source
from ._translate import Translator

MAX_SOURCES = 262_144
"""Most open sources of one control socket, more than any Mac's file descriptors (``kern.maxfiles``)."""

_CLOSING = int(HeaderFlag.CLOSING)
_DROPPED = int(HeaderFlag.CLOSED_AFTER_DROP)
_REASONS = (
    (int(HeaderFlag.CLOSED_AFTER_FILTER), RemovalReason.FILTERED),
    (_DROPPED, RemovalReason.DROPPED),
    (int(HeaderFlag.CLOSED_AFTER_GONE), RemovalReason.GONE),
)
"""The reason of a removal by its flags; the first one that is set counts."""
_UNKNOWN_COUNTS = Counts()
_UNKNOWN = (None,) * len(COUNTS_FIELDS)
_MOST_DEPARTED = 65_536
"""Most ends that are remembered while two control sockets are compared."""


class SourceTable:
    """The sources of one control socket.

    Args:
        translator: The session's.
        emit: Where events go.
        prefix: Makes flow ids differ from those of other sockets.
        terms: The terms of the subscription.
        every_update: Emit an update for each report, changed or not.
    """

    def __init__(
        self,
        translator: Translator,
        emit: Callable[[AnyEvent], object],
        *,
        prefix: str,
        terms: Terms,
        every_update: bool = False,
    ) -> None:
        self.translator = translator
        self.kernel = translator.kernel
        self.emit = emit
        self.prefix = prefix
        self.terms = terms
        self.every_update = every_update
        self.phase = Phase.LIVE
        self.sources: dict[int, Source] = {}
        self.references = References()
        self.readers = Readers(translator)
        self.time = 0.0
        """Wall clock of the present datagram, seconds."""
        self.time_ns = 0
        self.now = 0.0
        """Monotonic time of the present datagram, seconds."""
        self.subscribed: tuple[int, int] | None = None
        """`moment` of the subscription: earlier flows are pre-existing."""
        self.watching: tuple[int, int] | None = None
        """`moment` of the first control socket's subscription."""
        self.poll_serial = 0
        self.given_up: set[int] = set()
        """References that the client asked the kernel to remove."""
        self.own: frozenset[tuple[int, Endpoint]] = frozenset()
        """Pid and local end of the flows of a proof, which are not reported."""
        self.hidden: set[int] = set()
        """References of those flows, as far as they were seen."""
        self.lost_ends = 0
        """Number of ends without final counts, or of flows without any other report."""
        self.departed: deque[tuple[Source, RemovalReason]] | None = None
        """Flows that ended while two control sockets are compared; `None` if none are compared."""
        self.awaited: dict[str, Source] = {}
        """By id, flows of an earlier control socket that may be alive, although this one has no report of them."""
        self.recognise: Callable[[Source], bool] = lambda source: False  # noqa: ARG005
        """Says whether a new source is one of `awaited`, which it then continues."""
        self.described: set[int] | None = None
        """References whose description came in this poll; `None` if the poll does not ask for descriptions separately."""
        names = ("sources_seen", "flows_added", "flows_removed")
        more = ("unknown_lengths", "unknown_references", "counters_adjusted")
        self.statistics = dict.fromkeys((*names, *more), 0)
        self.listening: Counter[int] = Counter()
        """Number of listeners by local port: it gives the direction on kernels that do not tell it."""
        self.meter: CoverageMeter | None = None
        """Adds up the traffic of flows; `None` if that is not wanted, or this is not the current control socket."""
        self._nobody = self.kernel.layout.all_sources
        self._serial = 0
        self._full = False

    # --- entry points: one per message ------------------------------------

    def begin(self, now: float, time: float) -> None:
        """Set the monotonic and the wall-clock time at which the next datagrams arrived."""
        self.now = now
        self.time = time
        self.time_ns = int(time * 1e9)

    @property
    def moment(self) -> tuple[int, int]:
        """Monotonic and wall-clock time of the present datagram, nanoseconds."""
        return round(self.now * 1e9), self.time_ns

    def add(self, ref: int, provider_id: int, *, requested: bool) -> None:
        """SRC_ADDED."""
        source = self.sources.get(ref)
        if source is not None:
            if not source.reported:
                return
            # References of 32 bits wrap around: the old source must have ended without a report.
            self.remove(source, RemovalReason.GONE)
        source = self._create(ref, provider_id, preexisting=self.phase is Phase.LISTING and not requested)
        if source is not None:
            source.announced_ns = self.time_ns
            source.born = self.poll_serial

    def count(self, ref: int, raw: Raw, flags: int, *, solicited: bool) -> None:
        """SRC_COUNTS."""
        self.statistics["unknown_references"] += ref not in self.sources
        source = self._reported(ref, None)
        if source is None:
            return
        if not source.reader.is_flow:
            self._merge_counts(source, raw)
            self._report_other(source, removed=False)
            return
        previous = source.counters
        changed = raw != source.raw and self._merge_counts(source, raw)
        if flags & _CLOSING:
            source.closing = True
        if not solicited:
            source.unsolicited = 1
        if source.reported:
            if changed or self.every_update:
                self.announce_update(source, previous)
        # The description usually follows. If a second reading comes without one,
        # nobody asks for it, and the flow is reported as it is.
        elif previous is not None and source.flow is None and not flags & _CLOSING:
            self._announce(source)
        source.judge()

    def describe(self, ref: int, provider_id: int, data: bytes, at: int, end: int, flags: int) -> None:
        """SRC_DESC."""
        source = self._reported(ref, provider_id)
        if source is None:
            return
        if self.described is not None:
            self.described.add(ref)
        if source.unsolicited == 1:
            source.unsolicited = 2
        reader = source.reader if source.span == end - at else self._choose(source, provider_id, data, at, end)
        if not reader.is_flow:
            source.identity = data[at:end]
            if source.raw is not None:
                self._report_other(source, removed=False)
            return
        identity = hash(reader.identity(data, at))
        source.report = (reader, data, at, end, end, self.time_ns)
        changed = identity != source.identity and self._redescribe(source, reader, identity, data, at, end)
        if not source.reported:
            self._announce(source)
        elif changed and not (flags & _CLOSING or source.closing or source.unsolicited == 2):
            self.announce_update(source, source.counters)
        if source.report is not None and self.kernel.has_updates:
            source.is_plain = False  # see `Source.judge`

    def update(
        self, ref: int, provider_id: int, raw: Raw | None, data: bytes, at: int, end: int, items_end: int, flags: int
    ) -> None:
        """SRC_UPDATE and its variants; a report without counters is about a route or an interface."""
        source = self._reported(ref, provider_id)
        if source is None:
            return
        reader = source.reader if source.span == end - at else self._choose(source, provider_id, data, at, end)
        if not reader.is_flow:
            source.identity = data[at:end]
            if raw is not None:
                self._merge_counts(source, raw)
                self._report_other(source, removed=False)
            return
        if raw is None:
            return  # the provider's number is that of a route, but the length is not
        identity = hash(reader.identity(data, at))
        previous, source.report = source.counters, (reader, data, at, end, items_end, self.time_ns)
        changed = raw != source.raw and self._merge_counts(source, raw)
        different = identity != source.identity and self._redescribe(source, reader, identity, data, at, end)
        if flags & _CLOSING:
            source.closing = True
        if not source.reported:
            self._announce(source)
        elif changed or self.every_update or (different and not source.closing):
            self.announce_update(source, previous)
        if source.closing:
            source.report = (reader, data, at, end, items_end, self.time_ns)
        else:
            source.report = None
        source.judge()

    def end(self, ref: int, flags: int) -> None:
        """SRC_REMOVED."""
        source = self.sources.get(ref)
        if source is None:
            self._end_unseen(ref, flags)
            return
        usual = RemovalReason.MONITOR if ref in self.given_up else RemovalReason.CLOSED
        self.remove(source, next((reason for flag, reason in _REASONS if flags & flag), usual) if flags else usual)

    # --- what the client concludes ------------------------------------------

    def remove(self, source: Source, reason: RemovalReason) -> None:
        """Take a source out of the table and report it."""
        self.sources.pop(source.ref, None)
        self.given_up.discard(source.ref)
        self.hidden.discard(source.ref)
        self._forget_listener(source.flow)
        if not source.reader.is_flow:
            self._report_other(source, removed=True)
            return
        if not source.reported:
            self._announce(source)
            if source.ref in self.hidden:
                self.hidden.discard(source.ref)
                return
        if self.departed is not None:
            self.departed.append((source, reason))
        self.report_end(source, reason)

    def give_up_awaited(self) -> None:
        """Report the awaited flows as gone."""
        for source in self.awaited.values():
            self.report_end(source, RemovalReason.GONE)
        self.awaited.clear()

    def finish(self) -> None:
        """The recording is at its end: report the flows that were announced and never described."""
        for source in list(self.sources.values()):
            if not source.reported and source.reader.is_flow:
                self._announce(source)

    def restart(self, prefix: str) -> None:
        """The client opened another control socket: references begin again.

        Open flows leave the table, because the old socket does not report them any more.
        """
        for source in list(self.sources.values()):
            self.remove(source, RemovalReason.MONITOR)
        self.prefix = prefix
        self.references = References()
        self.given_up.clear()
        self.subscribed = None

    def continue_from(self, old: SourceTable) -> None:
        """Take over from another table: report from now on, and continue its counters."""
        self.emit, self.meter = old.emit, old.meter
        self.watching = old.watching
        old.begin(self.now, self.time)
        self.statistics["flows_added"] = self.statistics["flows_removed"] = 0
        for name, value in old.statistics.items():
            self.statistics[name] += value
        old.statistics = self.statistics

    def begin_poll(self) -> None:
        """A new poll begins, to which reports belong from now on."""
        self.poll_serial += 1
        self._full = False

    def remember_ends(self, *, wanted: bool) -> None:
        """Begin to keep the flows that end, for a comparison with another control socket; or stop and forget them."""
        self.departed = deque(maxlen=_MOST_DEPARTED) if wanted else None

    def absent(self) -> list[Source]:
        """Sources that existed when the last poll began, and that it did not report."""
        serial = self.poll_serial
        return [source for source in self.sources.values() if serial not in (source.seen, source.born)]

    def left_out(self, ref: int) -> bool:
        """True if the last poll should have reported this source, and did not."""
        source = self.sources.get(ref)
        return ref in self.references.missing if source is None else self.poll_serial not in {source.seen, source.born}

    def flows(self) -> Iterator[tuple[Flow, Counts | None]]:
        """The flows that were reported, with their last counts."""
        for source in [*self.sources.values(), *self.awaited.values()]:
            if source.reported and source.flow is not None:
                yield source.flow, source.counts

    def prove(self, codecs: dict[tuple[str, int], StructCodec]) -> None:
        """Read these structures as proven from now on; every flow is made again at its next report."""
        self.readers.prove(codecs)
        for ref, source in self.sources.items():
            if ref not in self.hidden:
                source.span = UNCHOSEN

    def merge(self, changed: Mapping[Any, Any]) -> None:
        """Update the flows whose processes or interfaces are known better now: old value to new value."""
        for source in self.sources.values():
            flow = source.flow
            if flow is not None and (flow.process in changed or flow.interface in changed):
                process, interface = (changed.get(value, value) for value in (flow.process, flow.interface))
                source.flow = attrs.evolve(flow, process=process, interface=interface)
                if source.reported:
                    self.announce_update(source, source.counters)

    # --- making ------------------------------------------------------------

    def _reported(self, ref: int, provider_id: int | None) -> Source | None:
        """The source of a report, marked as seen by the poll; `None` if there are too many sources."""
        source = self.sources.get(ref)
        if source is None:
            source = self._create(ref, provider_id, preexisting=self.phase is not Phase.LIVE)
        if source is not None:
            source.seen = self.poll_serial
        return source

    def _create(self, ref: int, provider_id: int | None, *, preexisting: bool) -> Source | None:
        references = self.references
        if ref == self._nobody:
            self._report_nobody()
            return None
        is_new = ref > references.top or ref in references.missing
        references.top = max(references.top, ref)
        if self.terms.counts_references:
            references.note(ref)
        if len(self.sources) >= MAX_SOURCES:
            self._report_full()
            return None
        self.statistics["sources_seen"] += 1
        identifier = f"{self.prefix}{ref}"
        if not is_new or not self.kernel.references_are_unique:
            # Another source may have had the number: its id must not be used again.
            self._serial += 1
            identifier = f"{identifier}.{self._serial}"
        source = self.sources[ref] = new_source(
            ref, identifier, self.readers.bare(provider_id), provider_id, preexisting
        )
        return source

    def _report_nobody(self) -> None:
        """Report a message about the reference that means "all sources"."""
        detail = f"a report about reference {self._nobody}, which is not a source"
        self.emit(EventsLost(self.time, LossCause.PROTOCOL, 1, detail=detail))

    def _report_full(self) -> None:
        """Report, once in a poll, that there are too many sources."""
        if not self._full:
            self._full = True
            detail = f"more than {MAX_SOURCES:,} sources are open: further ones are left out"
            self.emit(EventsLost(self.time, LossCause.LIMIT, None, detail=detail))

    def _end_unseen(self, ref: int, flags: int) -> None:
        terms = self.terms
        if ref == self._nobody:
            self._report_nobody()
            return
        if terms.counts_references:
            self.references.note(ref)
        self.given_up.discard(ref)
        lost = flags & _DROPPED and not terms.quiet
        unexplained = not self.kernel.explains_removal and (terms.counts_references or terms.filtered is False)
        if lost or unexplained:
            self.lost_ends += 1
            self.emit(EventsLost(self.time, LossCause.GOODBYE, 1, detail="a flow came and went unreported"))

    def _choose(self, source: Source, provider_id: int, data: bytes, at: int, end: int) -> DescriptorReader:
        """Choose the reader for a descriptor, and keep it with the source, unless the source is hidden."""
        if source.ref in self.hidden:
            return source.reader
        reader = self.readers.choose(provider_id, data, at, end)
        surprise = self.readers.surprise(provider_id, end - at)
        if surprise is not None:
            self.statistics["unknown_lengths"] += 1
            if surprise and reader.codec is None:
                self.emit(EventsLost(self.time, LossCause.PROTOCOL, None, detail=surprise))
        if source.reported and not reader.is_flow:
            self._retract(source)
        source.reader, source.span, source.provider_id = reader, end - at, provider_id
        source.identity, source.is_plain = None, False
        return reader

    def _retract(self, source: Source) -> None:
        """Take back a source that was reported as a flow by its counters alone, and is a route or an interface."""
        self._announce_removal(source, RemovalReason.MONITOR, final=False)
        self._forget_listener(source.flow)
        source.reported = False
        source.flow = None
        self._serial += 1
        source.id = f"{self.prefix}{source.ref}.{self._serial}"  # in case it is reported as a flow again

    # --- changing ----------------------------------------------------------

    def _merge_counts(self, source: Source, raw: Raw) -> bool:
        """Keep counters that differ from the last ones; True if the user sees a difference."""
        old, reader = source.raw, source.reader
        source.raw, source.totals = raw, None
        if old is None:
            return True
        sent, last = reader.unpack(raw), reader.unpack(old)
        shown = last if source.corrected is None else source.corrected
        grown = has_grown_whole if reader.self_reported else has_grown
        if source.corrected is None and grown(sent, last):
            return sent != last
        values = advance(shown, last, sent)
        source.corrected = None if values == sent else values
        self.statistics["counters_adjusted"] += values != sent
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
        """Make the flow again; False if it is the same as before."""
        source.identity = identity
        before = source.flow
        flow = reader.flow(source.id, data, at, end, time_ns=self.time_ns, previous=before, listening=self.listening)
        source.start_ticks = reader.start_ticks(data, at)
        if flow.started_ns is None and source.announced_ns is not None and not source.preexisting:
            flow = attrs.evolve(flow, started_ns=source.announced_ns)
        different = before is None or flow != before
        if different:
            source.flow = flow
        self._forget_listener(before)
        self._remember_listener(flow)
        return different

    # --- reporting: the only places that make events of flows -------------------

    def announce_update(self, source: Source, previous: Raw | None) -> None:
        """Report a flow's new counters or facts."""
        report = source.take_report(previous)
        if source.raw is None:
            report = (*report[:6], _UNKNOWN, None)
        self.emit(flow_updated(self.time, source.flow, report))  # type: ignore[arg-type]  # only what was added

    def _announce(self, source: Source) -> None:
        """Report a flow for the first time."""
        if source.flow is None:
            reader = source.reader
            started = None if source.preexisting else source.announced_ns
            source.flow = Flow(
                source.id, reader.provider, reader.userland, started_ns=started, provider_id=source.provider_id
            )
        flow = source.flow
        if self.own and flow.process is not None and (flow.process.pid, flow.local) in self.own:
            self.hide(source)
            return
        if self.subscribed is not None and flow.started_ns is not None and source.announced_ns is None:
            source.preexisting = self.is_older(flow, self.subscribed)
        if not self.awaited or not self.recognise(source):
            self.announce_added(source)

    def is_older(self, flow: Flow | None, subscribed: tuple[int, int] | None) -> bool:
        """True if a flow of which a report came just now is known to be older than a subscription, given its `moment`.

        Both clocks must say so: the wall clock may have been stepped since, and the monotonic one stands still while a Mac sleeps.
        """
        if flow is None or flow.started_ns is None or subscribed is None:
            return False
        age = self.time_ns - flow.started_ns
        return all(now - age < then for now, then in zip(self.moment, subscribed, strict=True))

    def hide(self, source: Source) -> None:
        """Report nothing more about a source; `Decoder.observer` still sees it."""
        self._forget_listener(source.flow)
        self.hidden.add(source.ref)
        source.reader, source.flow, source.identity = self.readers.silent, None, b""
        source.judge()

    def announce_added(self, source: Source) -> None:
        """Report a flow as added, as it is known now."""
        assert source.flow is not None
        source.reported = True
        self.statistics["flows_added"] += 1
        self.emit(flow_added(self.time, source.flow, None, source.preexisting, source.take_report(None)))

    def report_end(self, source: Source, reason: RemovalReason) -> None:
        """Report a flow as removed, and its final counts as lost if they are not known."""
        if self.meter is not None:
            self.meter.measure(source)
        self._announce_removal(source, reason, final=source.is_final)
        if not source.is_final and reason is not RemovalReason.MONITOR:
            self.lost_ends += 1
            detail = f"flow {source.id} ended without its final counts"
            self.emit(EventsLost(self.time, LossCause.FINAL_COUNTS, 1, detail=detail))

    def _announce_removal(self, source: Source, reason: RemovalReason, *, final: bool) -> None:
        assert source.flow is not None
        self.statistics["flows_removed"] += 1
        flow = ended(source.flow, source.counts) if final else source.flow
        self.emit(FlowRemoved(self.time, flow, None, final, reason, source.take_report(None)))

    def _report_other(self, source: Source, *, removed: bool) -> None:
        """Report a route or an interface, which have events of their own."""
        descriptor = source.identity
        if isinstance(descriptor, bytes):
            counts = source.counts or _UNKNOWN_COUNTS
            event = other_event(self.time, source.id, source.reader, descriptor, counts, removed=removed)
            if event is not None:
                self.emit(event)

    # --- listeners of kernels that do not tell the direction ----------------

    def _remember_listener(self, flow: Flow) -> None:
        port = _port_of_listener(flow)
        if not port:
            return
        self.listening[port] += 1
        if self.listening[port] > 1 or self.kernel.tells_roles:
            return
        for source in self.sources.values():
            # Polls report the newest sources first, so often a connection before its listener.
            other = source.flow
            if (
                other is not None
                and other.direction is Direction.OUTBOUND
                and other.local is not None
                and other.local.port == port
                and other.state is not TcpState.SYN_SENT
            ):
                source.flow = attrs.evolve(other, direction=Direction.INBOUND)
                if source.reported:
                    self.announce_update(source, source.counters)

    def _forget_listener(self, flow: Flow | None) -> None:
        port = _port_of_listener(flow)
        if port in self.listening:
            self.listening[port] -= 1
            if not self.listening[port]:
                del self.listening[port]


def _port_of_listener(flow: Flow | None) -> int:
    """The port that a flow listens on; 0 if it is not a listening kernel socket."""
    if flow is None or flow.state is not TcpState.LISTEN or flow.userland or flow.local is None:
        return 0
    return flow.local.port
