"""Events and rows as JSON Lines, version 1, and back.

    line = json.dumps(event)
    event == json.loads(line)

The table of fields says what a line has (see `docs/fields.md`). Numbers are numbers,
unknown values are ``null`` or left out, nothing is NaN, and a line is plain ASCII that a
terminal cannot misread. The command line writes shorter lines than `dumps`: without `FlowUpdated.previous`
and without the details of a report.

A byte of a name that is not UTF-8 (a lone surrogate in Python) becomes U+FFFD, because most readers would refuse the
whole file for a surrogate. In everything else a line gives its event back.

`to_dict` and `dumps` take any event, any row of a table, and any value in them (a flow, counts, …).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import attrs

from ._compiled import speedups
from ._errors import ProtocolError
from ._escape import dump
from ._events import AnyEvent, Event, FlowAdded, FlowRemoved, FlowUpdated
from ._fields import MOMENT, NUMBER, TABLE, Field, FieldTable, Record, number_text
from ._model import COUNTS_FIELDS, Counts, Delta, Flow, counts_of, growth
from ._public import only
from ._rows import Row, RowKind
from ._writing import VERSION, Kept, Numbers, Plan, Text, Writer, delta_text, pick_four

__all__ = ["JsonFormatter", "JsonReader", "dumps", "loads", "to_dict"]
__dir__ = only(__all__)

_REMEMBERED, _FORGOTTEN = 50_000, 1_000
"""Most flows that are remembered, and how many of the oldest are forgotten together to make room."""
_AT_ONCE = 8
"""Most events whose lines are one text: for a longer text the system would be asked for memory each time."""
_MOST_SHOWN = 200
"""Most characters of a refused line in its error."""
_MOST_SAID = 60
"""Most characters of a refused value in its error."""
_UNREADABLE = (ValueError, TypeError, LookupError, ArithmeticError)
"""Errors that reading nonsense may raise."""


# --- values to plain values ---------------------------------------------------------------


def _plain(value: Any, table: FieldTable, *, full: bool) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for field in table.of(type(value)).fields:
        if field.full and not full:
            continue
        item = field.value_of(value)
        if field.is_absent(item):
            continue
        result[field.key] = None if item is None else _plain_item(field, item, table)
    return result


def _plain_item(field: Field, item: Any, table: FieldTable) -> Any:
    return field.kind.plain(item) if field.kind.record is None else _plain(item, table, full=True)


def to_dict(value: Any, *, time: float | None = None, full: bool = True, table: FieldTable = TABLE) -> dict[str, Any]:
    """An event, a row or a value as a dictionary that `json.dumps` of the standard library takes.

    Args:
        value: The event, row or value.
        time: For a row: when it was read, seconds since the epoch.
        full: False: without the fields that the command line leaves out.
        table: The table of fields; another one for fields of your own.

    Raises:
        TypeError: The table has no such value.
    """
    try:
        record = table.of(type(value))
    except LookupError:
        raise TypeError(f"{value!r} is not an event, a row, or a value of one") from None
    result = _plain(value, table, full=full)
    if record.event is not None:
        return {"v": VERSION, "event": record.event, **result}
    return {"v": VERSION, "time": time, **result} if record.cls is Row else result


def dumps(value: Any, *, time: float | None = None, full: bool = True) -> str:
    """An event, a row or a value as one line of JSON, without a line break.

    Args:
        value: See `to_dict`.
        time: See `to_dict`.
        full: See `to_dict`.

    Raises:
        TypeError: See `to_dict`.
    """
    return dump(to_dict(value, time=time, full=full))


# --- and back -----------------------------------------------------------------------------


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


def loads(line: str | bytes, *, table: FieldTable = TABLE) -> AnyEvent | Row:
    """The event or row that a line was made of; a line of ``snapshot`` becomes a preexisting flow.

    Unknown keys are skipped. Lines of the command line are not full: they have `FlowUpdated.previous` only as the four
    counters of ``delta``.

    Raises:
        ProtocolError: The line is not JSON, or not known to this version.
    """
    return _loaded(line, lambda data: _event(data, table, None))


_FlowOf = Callable[[Any], Flow]
_decode = json.JSONDecoder(parse_constant=_no_constant).decode


def _loaded(line: str | bytes, event_of: Callable[[dict[str, Any]], Any]) -> AnyEvent | Row:
    try:
        text = line if isinstance(line, str) else line.decode(json.detect_encoding(line), "surrogatepass")
        data = _decode(text)
        if not isinstance(data, dict):
            raise TypeError("it is not an object")  # reported below, like everything else
        event: AnyEvent | Row = event_of(data)
    except (*_UNREADABLE, RecursionError) as error:
        raw = line.encode(errors="backslashreplace") if isinstance(line, str) else line
        raise ProtocolError(f"not an event line: {error}", raw=bytes(raw[:_MOST_SHOWN])) from error
    return event


def _event(data: Mapping[str, Any], table: FieldTable, flow_of: _FlowOf | None) -> Any:
    if data.get("v") != VERSION:
        raise ValueError(f"version {data.get('v')!r} of the format is unknown")
    name = data.get("event")
    if name is None:
        return _value(table.of(Row), data, table)
    if name == "flow":
        return _value(table.of(FlowAdded), {**data, "preexisting": True}, table, flow_of)
    record = table.events.get(name) if isinstance(name, str) else None
    if record is None:
        raise ValueError(f"event {name!r} is unknown")
    return _value(record, data, table, flow_of)


def _value(record: Record, data: Any, table: FieldTable, flow_of: _FlowOf | None = None) -> Any:
    if not isinstance(data, dict):
        raise ValueError(f"{_shown(data)} is not an object with the keys of {record.event or record.cls.__name__}")  # noqa: TRY004  # as all of them
    if record.cls is Counts and table is TABLE:
        return _counts(record, data)
    found: dict[str, Any] = {}
    for field in record.fields:
        if field.derived or field.key not in data:
            continue
        item = data[field.key]
        if item is not None:
            kind = field.kind
            if kind.record is None:
                try:
                    found[field.name] = kind.read(item)
                except _UNREADABLE as error:
                    raise ValueError(_wrong(field, item)) from error
            elif kind.record is Flow and flow_of is not None:
                found[field.name] = flow_of(item)
            else:
                found[field.name] = _value(table.of(kind.record), item, table)
        elif field.name in record.nullable:
            found[field.name] = None
    complete = _COMPLETE.get(record.cls)
    try:
        if complete is not None:
            complete(found, data)
        return record.cls(**found)
    except (TypeError, LookupError):
        required = {each.alias or each.name for each in attrs.fields(record.cls) if each.default is attrs.NOTHING}
        missing = [field.key for field in record.fields if field.name in required - found.keys()]
        if not missing:
            raise
        raise ValueError(f"{record.event or record.cls.__name__} has no {', '.join(missing)}") from None


def _wrong(field: Field, item: Any) -> str:
    """The value of a field, and what it should be."""
    return f"{field.key} is {_shown(item)}, but must be: {field.kind.name.replace('` `', ', ').strip('`')}"


def _shown(item: Any) -> str:
    text = json.dumps(item)
    return text if len(text) <= _MOST_SAID else f"{text[:_MOST_SAID]}…"


def _counts(record: Record, data: Mapping[str, Any]) -> Counts:
    """Read counts, quickly: they are most of a line, and most of them are plain numbers."""
    values = tuple(map(data.get, COUNTS_FIELDS))
    media = data.get("media")
    if media is None and {int, type(None)}.issuperset(map(type, values)):
        return counts_of(values)
    found = {}
    for field in record.fields:
        item = data.get(field.name)
        if item is not None and not field.derived:
            try:
                found[field.name] = field.kind.read(item)
            except _UNREADABLE as error:
                raise ValueError(_wrong(field, item)) from error
    return Counts(**found)


def _complete_flow(found: dict[str, Any], data: Mapping[str, Any]) -> None:
    """Lines of earlier versions have the start of a flow in seconds only."""
    started = data.get("started")
    if started is not None and "started_ns" not in found:
        found["started_ns"] = MOMENT.read(round(NUMBER.read(started) * 1_000_000) * 1000)


def _complete_update(found: dict[str, Any], data: Mapping[str, Any]) -> None:
    if "previous" in found:
        return
    if "delta" not in data:
        raise ValueError("flow_updated has neither delta nor previous")
    delta = _value(TABLE.of(Delta), data["delta"], TABLE)
    before = {}
    for name, grown in attrs.asdict(delta).items():
        now = getattr(found["counts"], name)
        if now is not None and grown is not None and grown != now:
            before[name] = now - grown
    found["previous"] = Counts(**before) if before else None


def _complete_row(found: dict[str, Any], _data: Mapping[str, Any]) -> None:
    process = found.get("process")
    if process is not None and found.get("kind") is RowKind.GROUP:
        found["key"] = process.key


_COMPLETE: dict[type, Callable[[dict[str, Any], Mapping[str, Any]], None]] = {
    Flow: _complete_flow,
    FlowUpdated: _complete_update,
    Row: _complete_row,
}
"""Functions that complete the values of a class after its keys were read."""


# --- many lines a second ------------------------------------------------------------------


@attrs.define(eq=False)
class JsonReader:
    """Turns the lines of one stream into events quickly: `loads` for streams.

    The events of a flow share one `Flow` as long as it does not change, as those of a monitor do. At most `_REMEMBERED`
    flows are kept.
    """

    change: Callable[[Flow], Flow] | None = None
    """Applied to each new value of a flow; `None`: values stay as they are."""
    deltas: bool = True
    """False: `FlowUpdated.previous` is `None` if the line has only a delta, for callers who know the previous counters."""
    table: FieldTable = attrs.field(default=TABLE, repr=False)
    """The table of fields."""
    _flows: dict[str, tuple[Any, Flow]] = attrs.field(factory=dict, init=False, repr=False)
    _last: str = attrs.field(default="", init=False, repr=False)
    """Id of the flow in the last line, as written there."""

    def __call__(self, line: str | bytes) -> AnyEvent | Row:
        """The event or row of a line.

        Raises:
            ProtocolError: See `loads`.
        """
        event = _loaded(line, self._event)
        if isinstance(event, FlowRemoved):
            self._flows.pop(self._last, None)
        return event

    def _event(self, data: dict[str, Any]) -> Any:
        if not self.deltas and data.get("event") == "flow_updated":
            data.setdefault("previous", None)
        return _event(data, self.table, self._flow)

    def _flow(self, data: Any) -> Flow:
        identity = data.get("id") if isinstance(data, dict) else None
        self._last = identity if isinstance(identity, str) else ""
        known = self._flows.get(self._last)
        if known is not None and known[0] == data:
            return known[1]
        flow: Flow = _value(self.table.of(Flow), data, self.table)
        flow = flow if self.change is None else self.change(flow)
        if len(self._flows) >= _REMEMBERED:
            for oldest in list(islice(self._flows, _FORGOTTEN)):
                del self._flows[oldest]
        self._flows[self._last] = (data, flow)
        return flow


@attrs.define(eq=False)
class JsonFormatter:
    """Turns events into lines quickly: `dumps` for streams.

    An event costs one look-up and a few formats. Text that does not change between two events of a flow is made once,
    and kept for at most `_REMEMBERED` flows.
    """

    full: bool = False
    """True: lines have everything that `dumps` writes."""
    table: FieldTable = attrs.field(default=TABLE, repr=False)
    """The table of fields."""
    _flows: dict[str, Kept] = attrs.field(factory=dict, init=False)
    _writer: Writer = attrs.field(init=False)
    _write_update: Callable[[FlowUpdated, tuple[str, str]], str] = attrs.field(init=False)
    _write_flow: Text = attrs.field(init=False)
    _take: Any = attrs.field(init=False)
    """The C code, where it is used."""
    _time: float | None = attrs.field(default=None, init=False)
    _head: str = attrs.field(default="", init=False)
    """The beginning of an update's line at `_time`, where a plan writes it."""

    def __attrs_post_init__(self) -> None:
        self._writer = writer = Writer(self.table, full=self.full)
        self._write_flow = writer.of(Flow)
        writer.known[Flow] = lambda flow: self._keep(flow).text
        self._write_update = writer.made(FlowUpdated, {"counts": "x", "delta": "x"})
        writer.known |= {FlowUpdated: self._updated, FlowRemoved: self._removed_by(writer.of(FlowRemoved))}
        self._take = None if speedups is None else speedups.Lines(FlowUpdated, Flow, Kept).take

    def __call__(self, event: Event) -> str:
        """The line.

        Raises:
            TypeError: It is not an event.
        """
        write = self._writer.known.get(type(event))
        if write is None:
            try:
                write = self._writer.of(type(event))
            except LookupError:
                raise TypeError(f"{event!r} is not an event") from None
        return write(event)

    def lines(self, events: Sequence[Event]) -> Iterator[str]:
        """The lines of many events, several of them in one text with line breaks.

        Raises:
            TypeError: One of them is not an event.
        """
        if self._take is None:
            updated = self._updated
            for at in range(0, len(events), _AT_ONCE):
                some = events[at : at + _AT_ONCE]
                yield "\n".join([updated(each) if each.__class__ is FlowUpdated else self(each) for each in some])
            return
        at, end = 0, len(events)
        while at < end:
            at, text = self._take(events, at, self._flows)
            if not text:  # the event is not a plain update
                text = self(events[at])
                at += 1
            yield text

    def flow_line(self, flow: Flow, counts: Counts | None, time: float) -> str:
        """A flow of this moment, as ``snapshot`` prints it; its text is not kept."""
        counted = "null" if counts is None else self._writer.of(Counts)(counts)
        return f'{{"v":1,"event":"flow","time":{number_text(time)},"flow":{self._write_flow(flow)},"counts":{counted}}}'

    def _keep(self, flow: Flow) -> Kept:
        known = self._flows.get(flow.id)
        if known is not None and known.flow is flow:
            return known
        kept = Kept(flow, self._write_flow(flow))
        if len(self._flows) >= _REMEMBERED:
            self._flows.clear()
        self._flows[flow.id] = kept
        return kept

    def _updated(self, event: FlowUpdated) -> str:
        flow, report = event.flow, event._details  # noqa: SLF001  # read a hundred thousand times a second
        if report.__class__ is not tuple:
            counts = event.counts
            return self._write_update(event, self._counted(event, counts, counts._translated()))  # noqa: SLF001  # all at once, for speed
        reader, _, _, _, _, _, raw, before = report
        kept, last = self._flows.get(flow.id), None
        if kept is not None and kept.raw is before and kept.reader is reader:  # nearly always
            plan: Plan | None = kept.plan
            if plan is None:
                last = kept.state
            elif kept.flow is flow and len(raw) == plan.size:
                if event.time is not self._time:  # many events in a row have the same
                    self._time, self._head = event.time, plan.head(self._writer.number(event.time))
                line = plan.write(self._head, raw, kept)
                if line is not None:
                    return line
        counts = reader.counts(raw)  # not `event.counts`, which the event would keep
        values = counts._translated()  # noqa: SLF001  # all at once, for speed
        line = self._write_update(event, self._counted(event, counts, values, last))
        self._writer.follow(self._keep(flow), reader, raw, pick_four(values))
        return line

    def _counted(self, event: FlowUpdated, counts: Counts, values: Numbers, last: Any = None) -> tuple[str, str]:
        """The text of counters and of their delta; `last`: the four counters of the previous event, if they are known."""
        delta = four = pick_four(values)
        if last is None and event.previous is not None:
            last = pick_four(event.previous._translated())  # noqa: SLF001  # all at once, for speed
        if last is not None:
            delta = growth(four, last)
        return self._writer.counts(counts, values), delta_text(delta)

    def _removed_by(self, write: Text) -> Callable[[FlowRemoved], str]:
        def removed(event: FlowRemoved) -> str:
            line = write(event)
            self._flows.pop(event.flow.id, None)
            return line

        return removed
