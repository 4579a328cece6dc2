"""Events and rows as JSON Lines, version 1, and back.

    line = json.dumps(event)
    event == json.loads(line)

What a line has is the table of fields (`docs/fields.md` shows it): numbers are numbers,
what is unknown is ``null`` or left out, nothing is ever NaN, and a line is plain ASCII that a
terminal cannot misread. The command line writes shorter lines than `dumps`: without `FlowUpdated.previous`
and without the details of a report.

`to_dict` and `dumps` take any event, any row of a table, and any value of them (a flow, counts, …).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from operator import itemgetter
from typing import Any, Union

import attrs

from ._errors import ProtocolError
from ._escape import dump
from ._events import AnyEvent, Event, FlowAdded, FlowRemoved, FlowUpdated
from ._fields import MOMENT, NUMBER, TABLE, Field, FieldTable, Record, number_text
from ._model import COUNTS_FIELDS, Counts, Delta, Flow, counts_of, growth
from ._public import only
from ._rows import Row, RowKind

__all__ = ["JsonFormatter", "JsonReader", "dumps", "loads", "to_dict"]
__dir__ = only(__all__)

_VERSION = 1
_REMEMBERED, _FORGOTTEN = 50_000, 1_000
"""Flows that are remembered, and how many of the oldest are forgotten at a time to make room."""
_MOST_SHOWN = 200
"""Characters of a refused line that its error carries."""
_MOST_SAID = 60
"""Characters of a refused value that its error says."""
_UNREADABLE = (ValueError, TypeError, LookupError, ArithmeticError)
"""What reading nonsense may raise."""


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
        time: For a row: the moment of the look, seconds since the epoch.
        full: False: without what the command line leaves out.
        table: The table of fields; another one for fields of your own.

    Raises:
        TypeError: There is nothing about such a value in the table.
    """
    try:
        record = table.of(type(value))
    except LookupError:
        raise TypeError(f"{value!r} is no event, no row and no value of them") from None
    result = _plain(value, table, full=full)
    if record.event is not None:
        return {"v": _VERSION, "event": record.event, **result}
    return {"v": _VERSION, "time": time, **result} if record.cls is Row else result


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
    raise ValueError(f"{text} is no JSON")


def loads(line: str | bytes, *, table: FieldTable = TABLE) -> AnyEvent | Row:
    """The event or row that a line was made of; a line of ``snapshot`` is a flow that was there before.

    Unknown keys are skipped. Lines that are not full, as the command line prints them, give `FlowUpdated.previous`
    from ``delta``: the four counters that it has.

    Raises:
        ProtocolError: The line is no JSON, or nothing that this version knows.
    """
    return _loaded(line, lambda data: _event(data, table, None))


_FlowOf = Callable[[Any], Flow]
_decode = json.JSONDecoder(parse_constant=_no_constant).decode


def _loaded(line: str | bytes, event_of: Callable[[dict[str, Any]], Any]) -> AnyEvent | Row:
    try:
        text = line if isinstance(line, str) else line.decode(json.detect_encoding(line), "surrogatepass")
        data = _decode(text)
        if not isinstance(data, dict):
            raise TypeError("it is no object")  # one place says what is wrong
        event: AnyEvent | Row = event_of(data)
    except (*_UNREADABLE, RecursionError) as error:
        raw = line.encode(errors="backslashreplace") if isinstance(line, str) else line
        raise ProtocolError(f"no event line: {error}", raw=bytes(raw[:_MOST_SHOWN])) from error
    return event


def _event(data: Mapping[str, Any], table: FieldTable, flow_of: _FlowOf | None) -> Any:
    if data.get("v") != _VERSION:
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
        raise ValueError(f"{_shown(data)} is no object with the keys of {record.event or record.cls.__name__}")  # noqa: TRY004  # as all of them
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
    """What a field is, and what it would have to be."""
    return f"{field.key} is {_shown(item)}, but must be: {field.kind.name.replace('` `', ', ').strip('`')}"


def _shown(item: Any) -> str:
    text = json.dumps(item)
    return text if len(text) <= _MOST_SAID else f"{text[:_MOST_SAID]}…"


def _counts(record: Record, data: Mapping[str, Any]) -> Counts:
    """Most of a line is counts, and most of them are plain numbers."""
    values = tuple(map(data.get, COUNTS_FIELDS))
    media = data.get("media")
    if media is None and {int, type(None)}.issuperset(map(type, values)):
        return counts_of(values)
    found = {}
    for field in record.fields:
        item = data.get(field.name)
        if item is not None:
            try:
                found[field.name] = field.kind.read(item)
            except _UNREADABLE as error:
                raise ValueError(_wrong(field, item)) from error
    return Counts(**found)


def _complete_flow(found: dict[str, Any], data: Mapping[str, Any]) -> None:
    """Lines of earlier versions have the begin of a flow in seconds only."""
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
"""What a class needs beside its own keys."""


# --- many lines a second ------------------------------------------------------------------


@attrs.define(eq=False)
class JsonReader:
    """Turns the lines of one stream into events, many a second: `loads` for streams.

    While nothing about a flow changed, its events share one `Flow`, as those of a monitor do; at most `_REMEMBERED`
    of them are kept.
    """

    change: Callable[[Flow], Flow] | None = None
    """What is made of each new value of a flow; `None`: it stays as it is."""
    deltas: bool = True
    """False: `FlowUpdated.previous` is `None` where the line has only the delta, for readers who know better."""
    table: FieldTable = attrs.field(default=TABLE, repr=False)
    """The table of fields."""
    _flows: dict[str, tuple[Any, Flow]] = attrs.field(factory=dict, init=False, repr=False)
    _last: str = attrs.field(default="", init=False, repr=False)
    """Id of the flow of the last line, as it stands there."""

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


_Text = Callable[[Any], str]
_Numbers = tuple[Union[int, None], ...]
"""All counters in the order of `COUNTS_FIELDS`."""
_DELTA_FIELDS = ("rx_bytes", "tx_bytes", "rx_packets", "tx_packets")
_pick_four: Callable[[_Numbers], Any] = itemgetter(*map(COUNTS_FIELDS.index, _DELTA_FIELDS))
_DELTA = '{"rx_bytes":%s,"tx_bytes":%s,"rx_packets":%s,"tx_packets":%s}'


def _delta_text(values: _Numbers) -> str:
    if None in values:
        return _DELTA % tuple(["null" if value is None else value for value in values])
    return _DELTA % values


def _compiled(fields: Sequence[Field], texts: Sequence[_Text | str], head: str, given: Sequence[str] = ()) -> Any:
    """A function that writes these fields of a value: one expression, made once, as quick as one by hand.

    Args:
        fields: What is written; those that are `Field.later` only where they are known.
        texts: For each the function, or the expression of ``x``, that writes its value.
        head: What stands before them; without it the first field needs no comma.
        given: Names of fields whose values are handed in as one more argument.
    """
    names: dict[str, Any] = {}
    template, items = [head], []
    for at, (field, text) in enumerate(zip(fields, texts, strict=True)):
        names.update({f"get{at}": field.get, f"text{at}": text, f"empty{at}": field.kind.empty})
        read = f"value.{field.name}" if field.get is None else f"get{at}(value)"
        read = f"given[{given.index(field.name)}]" if field.name in given else read
        written = text if isinstance(text, str) else f"text{at}(x)"
        absent = f"(x := {read}) is None"
        if field.later:
            absent += "" if field.kind.empty is None else f" or x == empty{at}"
            template.append("%s")
            items.append(f"""'' if {absent} else ',"{field.key}":%s' % ({written},)""")
        else:
            template.append(f',"{field.key}":%s')
            items.append(f"""'null' if {absent} else {written}""")
    pattern = "".join(template)
    if not head and not fields[0].later:
        head, pattern = "{", "{" + pattern[1:]
    members = f"({pattern!r} % ({', '.join(items)},))"
    whole = f"{members} + '}}'" if head else f"'{{' + {members}[1:] + '}}'"  # no member may be there: "{}"
    exec(f"def write(value{', given' if given else ''}): return {whole}", names)  # noqa: S102  # source from the table alone, as attrs makes its methods
    return names["write"]


class _Writer:
    """Makes for each class the function that writes its values as JSON objects."""

    def __init__(self, table: FieldTable, *, full: bool) -> None:
        self._table = table
        self._full = full
        self._last = (0.0, "0.0")
        self.known: dict[type, _Text] = {}
        fields = table.of(Counts).fields
        self._any_counts: Callable[[Counts, _Numbers], str] = self.made(Counts, dict.fromkeys(COUNTS_FIELDS, "x"))
        self._numbers = [(field, COUNTS_FIELDS.index(field.name)) for field in fields if field.name in COUNTS_FIELDS]
        self._formats: dict[int, tuple[str, Callable[[_Numbers], Any]]] | None = {}
        """By how many numbers are unknown: the format of the known ones, and what picks these."""
        if any(field.name not in (*COUNTS_FIELDS, "media") for field in fields):
            self._formats = None  # fields of somebody's own
        self.known[Counts] = lambda counts: self.counts(counts, counts._translated())  # noqa: SLF001  # all at once, for speed

    def counts(self, counts: Counts, values: _Numbers) -> str:
        """Counts whose numbers were read already. Most of a line is this, so one format takes all numbers at once."""
        if self._formats is None or counts.media:
            return self._any_counts(counts, values)
        unknown = values.count(None)
        known = self._formats.get(unknown)
        if known is not None:
            try:
                text: str = known[0] % known[1](values)
                return text  # noqa: TRY300  # what may fail is the line above
            except TypeError:  # as many are unknown, but others
                pass
        if unknown < len(values):
            self._formats[unknown] = self._format_of(values)
        return self._any_counts(counts, values)

    def _format_of(self, values: _Numbers) -> tuple[str, Callable[[_Numbers], Any]]:
        """The format of values of which the same are known, and what picks these."""
        members = [
            f'"{field.key}":{"null" if values[place] is None else "%d"}'
            for field, place in self._numbers
            if values[place] is not None or not field.later
        ]
        places = [place for _, place in self._numbers if values[place] is not None]
        return f"{{{','.join(members)}}}", itemgetter(*places)

    def of(self, cls: type) -> _Text:
        """The function for a class."""
        known = self.known.get(cls)
        if known is None:
            known = self.known[cls] = self.made(cls, {})
        return known

    def made(self, cls: type, given: Mapping[str, str]) -> Any:
        """A function for a class; values of the fields in `given` are an argument, written by these expressions."""
        record = self._table.of(cls)
        head = "" if record.event is None else f'{{"v":{_VERSION},"event":"{record.event}"'
        fields = [field for field in record.fields if self._full or not field.full]
        return _compiled(fields, [given.get(field.name) or self._text(field) for field in fields], head, [*given])

    def _text(self, field: Field) -> _Text | str:
        kind = field.kind
        if kind.record is not None:
            return self.of(kind.record)
        if kind is NUMBER:
            return self._number
        return kind.text or (lambda item: dump(kind.plain(item)))

    def _number(self, value: float) -> str:
        """Many events in turn have the same time."""
        known, text = self._last
        if known != value:
            text = number_text(value)
            self._last = value, text
        return text


@attrs.define(eq=False)
class JsonFormatter:
    """Turns events into lines, many a second: `dumps` for streams.

    Operations: one look-up and a few formats for each event. The text of a flow is kept
    while successive events carry the same object, at most `_REMEMBERED` of them.
    """

    full: bool = False
    """True: everything that `dumps` writes."""
    table: FieldTable = attrs.field(default=TABLE, repr=False)
    """The table of fields."""
    _flows: dict[str, tuple[Flow, str]] = attrs.field(factory=dict, init=False)
    _sent: dict[str, tuple[Any, Any, Any]] = attrs.field(factory=dict, init=False)
    """Of each flow the last counters: who reads them, as they were sent, and the four of a delta."""
    _writer: _Writer = attrs.field(init=False)
    _write_update: Callable[[FlowUpdated, tuple[str, str]], str] = attrs.field(init=False)
    _write_flow: _Text = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._writer = writer = _Writer(self.table, full=self.full)
        self._write_flow = writer.of(Flow)
        writer.known[Flow] = self._flow
        self._write_update = writer.made(FlowUpdated, {"counts": "x", "delta": "x"})
        writer.known |= {FlowUpdated: self._updated, FlowRemoved: self._removed_by(writer.of(FlowRemoved))}

    def __call__(self, event: Event) -> str:
        """The line.

        Raises:
            TypeError: It is no event.
        """
        write = self._writer.known.get(type(event))
        if write is None:
            try:
                write = self._writer.of(type(event))
            except LookupError:
                raise TypeError(f"{event!r} is no event") from None
        return write(event)

    def flow_line(self, flow: Flow, counts: Counts | None, time: float) -> str:
        """A flow of this moment, as ``snapshot`` prints it; its text is not kept."""
        counted = "null" if counts is None else self._writer.of(Counts)(counts)
        return f'{{"v":1,"event":"flow","time":{number_text(time)},"flow":{self._write_flow(flow)},"counts":{counted}}}'

    def _flow(self, flow: Flow) -> str:
        known = self._flows.get(flow.id)
        if known is not None and known[0] is flow:
            return known[1]
        text = self._write_flow(flow)
        if len(self._flows) >= _REMEMBERED:
            self._flows.clear()
            self._sent.clear()
        self._flows[flow.id] = (flow, text)
        return text

    def _updated(self, event: FlowUpdated) -> str:
        flow, report = event.flow, event.raw_details
        if report.__class__ is tuple:  # the counters are its own: they need not be kept with the event
            reader, raw, before = report[0], report[6], report[7]
            counts = reader.counts(raw)
        else:
            counts, reader, raw, before = event.counts, None, None, None
        values = counts._translated()  # noqa: SLF001  # all at once, for speed
        delta = four = _pick_four(values)
        last = self._sent.get(flow.id)
        if before is not None and last is not None and last[1] is before and last[0] is reader:  # nearly always
            delta = growth(four, last[2])
        elif (previous := event.previous) is not None:
            delta = growth(four, _pick_four(previous._translated()))  # noqa: SLF001  # as above
        self._sent[flow.id] = (reader, raw, four)
        return self._write_update(event, (self._writer.counts(counts, values), _delta_text(delta)))

    def _removed_by(self, write: _Text) -> Callable[[FlowRemoved], str]:
        def removed(event: FlowRemoved) -> str:
            line = write(event)
            self._flows.pop(event.flow.id, None)
            self._sent.pop(event.flow.id, None)
            return line

        return removed
