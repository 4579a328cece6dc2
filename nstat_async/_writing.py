"""Functions that write values as JSON. They are made from the table of fields, and as quick as if written by hand.

Most lines of a stream are updates of flows, and most of an update repeats the one before: the flow, and most
counters. That text is kept for each flow (`Kept`). A kernel's own form of the counters tells where each number
is (`CountsForm`), so a `Plan` writes the line without making `Counts`. The C code follows the same plan.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from types import CodeType
from typing import Any, Union

import attrs

from ._escape import dump
from ._events import FlowUpdated, ReportReader
from ._fields import NUMBER, Field, FieldTable, number_text
from ._model import COUNTS_FIELDS, Counts, CountsForm, Delta, Flow, Place

VERSION = 1
"""Version of the format."""
Text = Callable[[Any], str]
Numbers = tuple[Union[int, None], ...]
"""All counters in the order of `COUNTS_FIELDS`."""
_FOUR = ("rx_bytes", "tx_bytes", "rx_packets", "tx_packets")
pick_four: Callable[[Numbers], Any] = itemgetter(*map(COUNTS_FIELDS.index, _FOUR))


def delta_text(values: Numbers) -> str:
    """The object ``delta`` of an update."""
    a, b, c, d = ["null" if value is None else value for value in values] if None in values else values
    return f'{{"rx_bytes":{a},"tx_bytes":{b},"rx_packets":{c},"tx_packets":{d}}}'


def _function(arguments: str, body: Sequence[str], names: Mapping[str, Any]) -> Any:
    found = dict(names)
    exec(_code(f"def write({arguments}):\n " + "\n ".join(body)), found)  # noqa: S102  # source from the table alone, as attrs makes its methods
    return found["write"]


@functools.lru_cache(256)
def _code(source: str) -> CodeType:
    """Compiled code is kept: every formatter needs the same, and compiling takes most of the time."""
    return compile(source, "<table of fields>", "exec")


def _compiled(fields: Sequence[Field], texts: Sequence[Text | str], head: str, given: Sequence[str] = ()) -> Any:
    """A function that writes these fields of a value by one format.

    Args:
        fields: The fields; a `Field.later` is written only if it is known.
        texts: For each field a function, or an expression of ``x``, that writes its value.
        head: The text before the fields; without it the first field has no comma before it.
        given: Names of fields whose values come as a second argument.
    """
    names: dict[str, Any] = {}
    body, members = [], []
    for at, (field, text) in enumerate(zip(fields, texts, strict=True)):
        names.update({f"get{at}": field.get, f"text{at}": text, f"empty{at}": field.kind.empty})
        read = f"value.{field.name}" if field.get is None else f"get{at}(value)"
        read = f"given[{given.index(field.name)}]" if field.name in given else read
        written = text if isinstance(text, str) else f"text{at}(x)"
        absent = f"(x := {read}) is None"
        if field.later:
            absent += "" if field.kind.empty is None else f" or x == empty{at}"
            body.append(f"""a{at} = '' if {absent} else ',"{field.key}":%s' % ({written},)""")
        else:
            members.append(repr(f'{"," if head or at else "{"}"{field.key}":'))
            body.append(f"a{at} = 'null' if {absent} else {written}")
        members.append(f"f'{{a{at}}}'")
    whole = f"{head!r} {' '.join(members)} '}}'"
    if not head and fields[0].later:
        whole = f"'{{' + ({' '.join(members)})[1:] + '}}'"  # "{}" if there is no member
    return _function("value, given" if given else "value", [*body, f"return {whole}"], names)


class Writer:
    """Makes, for each class, a function that writes its values as JSON objects."""

    def __init__(self, table: FieldTable, *, full: bool) -> None:
        self._table = table
        self._full = full
        self._last = (0.0, "0.0")
        self._plans: dict[CountsForm, Plan | None] = {}
        self.known: dict[type, Text] = {}
        fields = table.of(Counts).fields
        self._any_counts: Callable[[Counts, Numbers], str] = self.made(Counts, dict.fromkeys(COUNTS_FIELDS, "x"))
        self._numbers = [(field, COUNTS_FIELDS.index(field.name)) for field in fields if field.name in COUNTS_FIELDS]
        self._is_own = any(field.name not in (*COUNTS_FIELDS, "media") and not field.derived for field in fields)
        """True if a table of the user's own adds fields."""
        self._formats: dict[int, tuple[Any, Callable[..., str]]] = {}
        """By the number of unknown counters: which ones are unknown, and a function that writes the others."""
        self.known[Counts] = lambda counts: self.counts(counts, counts._translated())  # noqa: SLF001  # all at once, for speed

    def counts(self, counts: Counts, values: Numbers) -> str:
        """Counts whose numbers were read already: they are most of a line, so one format writes all numbers together."""
        if self._is_own or counts.media:
            return self._any_counts(counts, values)
        unknown = values.count(None)
        pick, write = self._formats.get(unknown) or self._format_of(values)
        if unknown and pick(values) != pick((None,) * len(values)):  # as many are unknown, but others
            pick, write = self._format_of(values)
        return write(*values)

    def _format_of(self, values: Numbers) -> tuple[Any, Callable[..., str]]:
        """Functions that pick the unknown counters of values, and that write the known ones if the same are unknown."""
        members = [
            f'"{field.key}":{"null" if values[place] is None else f"{{a{place}}}"}'
            for field, place in self._numbers
            if values[place] is not None or not field.later
        ]
        arguments = ", ".join(f"a{place}" for place in range(len(values)))
        write = _function(arguments, [f"return f'{{{{{','.join(members)}}}}}'"], {})
        unknown = [place for place, value in enumerate(values) if value is None]
        found = self._formats[len(unknown)] = (itemgetter(*unknown) if unknown else None, write)
        return found

    def of(self, cls: type) -> Text:
        """The function for a class."""
        known = self.known.get(cls)
        if known is None:
            known = self.known[cls] = self.made(cls, {})
        return known

    def made(self, cls: type, given: Mapping[str, str]) -> Any:
        """A function for a class; the values of fields in `given` are an argument, written by these expressions."""
        record = self._table.of(cls)
        head = "" if record.event is None else f'{{"v":{VERSION},"event":"{record.event}"'
        fields = [field for field in record.fields if self._full or not field.full]
        return _compiled(fields, [given.get(field.name) or self._text(field) for field in fields], head, [*given])

    def _text(self, field: Field) -> Text | str:
        kind = field.kind
        if kind.record is not None:
            return self.of(kind.record)
        if kind is NUMBER:
            return self.number
        return kind.text or (lambda item: dump(kind.plain(item)))

    def number(self, value: float) -> str:
        """The text of a number, which is kept: many events in a row have the same time."""
        known, text = self._last
        if known != value:
            text = number_text(value)
            self._last = value, text
        return text

    def follow(self, kept: Kept, reader: ReportReader, raw: Any, four: Any) -> None:
        """Keep the counters of a flow that were written, so that a plan may write the next ones."""
        form, plan = reader.form, None
        if form is not None and isinstance(raw, bytes) and len(raw) == form.size:
            if form not in self._plans:
                self._plans[form] = None if self._full else _plan_of(self._table, form)
            plan = self._plans[form]
        kept.reader, kept.raw, kept.plan = reader, raw, plan
        kept.program, kept.state = (None, four) if plan is None else (plan.program, plan.begin(raw))


# --- updates of flows --------------------------------------------------------------------------


@attrs.define(eq=False, weakref_slot=False)
class Kept:
    """What a formatter keeps of a flow: the text and counters that it wrote last."""

    flow: Flow
    text: str
    reader: ReportReader | None = None
    """The reader of the counters that were written last."""
    raw: Any = None
    """The counters that were written last."""
    plan: Plan | None = None
    """Writes the next counters; `None`: there is no plan."""
    program: bytes | None = None
    """`Plan.program`, for the C code."""
    state: tuple[Any, ...] = ()
    """What was written last, as the plan has it; without a plan the counters that have a delta."""


@attrs.frozen(eq=False)
class Plan:
    """How to write updates whose counters have a known form, as long as no total falls."""

    size: int
    """Size of the counters in bytes."""
    program: bytes
    """The pieces of the line, for the C code."""
    head: Callable[[str], str]
    """Makes the line's beginning of the time; it is the same in all plans of a table."""
    begin: Callable[[bytes], tuple[Any, ...]]
    """Makes `Kept.state` of counters: those that have a delta, the bytes of each group of others, and the texts of the groups."""
    write: Callable[[str, bytes, Kept], str | None]
    """Makes the line of (beginning, counters, flow); `None` if a total fell."""


_NOWHERE = Place(0, 0)


@attrs.frozen
class _Piece:
    """A part of a line: a fixed text and the value after it."""

    before: str
    kind: int
    place: Place = _NOWHERE
    name: str = ""


_END, _TIME, _FLOW, _LONG, _SHORT, _MILLISECONDS, _GROWN = range(7)
"""Kinds of values: none, the time, the flow's text, a number of 64 bits, one of 32 bits, a scaled time, a delta."""
_HEAD = struct.Struct("<H")
_PIECE = struct.Struct("<5H")


def _plan_of(table: FieldTable, form: CountsForm) -> Plan | None:
    """The plan for a form; `None` if lines have other fields, or the totals lie elsewhere."""
    shown = [field.name for field in table.of(FlowUpdated).fields if not field.full]
    fields = table.of(Counts).fields
    first = sorted(form.places[name].offset for name in _FOUR if name in form.places)
    if (
        shown != ["time", "flow", "counts", "delta"]
        or first != [0, 8, 16, 24]
        or any(
            field.get is not None or field.name not in (*COUNTS_FIELDS, "media")
            for field in fields
            if not field.derived
        )
    ):
        return None
    pieces = list(_pieces(table, form))
    program = _HEAD.pack(form.size) + b"".join(map(_encoded, pieces))
    opening, flow = pieces[0].before, pieces[1].before
    return Plan(form.size, program, lambda time: f"{opening}{time}{flow}", *_update_writer(pieces))


def _pieces(table: FieldTable, form: CountsForm) -> Iterator[_Piece]:
    """The pieces of an update's line, in order."""
    record = table.of(FlowUpdated)
    time, flow, counts, delta = [field.key for field in record.fields if not field.full]
    yield _Piece(f'{{"v":{VERSION},"event":"{record.event}","{time}":', _TIME)
    yield _Piece(f',"{flow}":', _FLOW)
    before, comma = f',"{counts}":{{', ""
    for field in table.of(Counts).fields:
        place = form.places.get(field.name)
        if place is not None:
            kind = _MILLISECONDS if place.parts else _LONG if place.size == 8 else _SHORT
            yield _Piece(f'{before}{comma}"{field.key}":', kind, place, field.name)
            before, comma = "", ","
        elif not field.later:
            before, comma = f'{before}{comma}"{field.key}":null', ","
    before += f'}},"{delta}":{{'
    for at, field in enumerate(table.of(Delta).fields):
        yield _Piece(f'{before}{"," if at else ""}"{field.key}":', _GROWN, form.places[field.name], field.name)
        before = ""
    yield _Piece("}}", _END)


def _encoded(piece: _Piece) -> bytes:
    text, place = piece.before.encode("ascii"), piece.place
    return _PIECE.pack(piece.kind, place.offset, place.parts, place.sample, len(text)) + text


def _update_writer(pieces: Sequence[_Piece]) -> tuple[Any, Any]:
    """`Plan.begin` and `Plan.write`: counters that are not totals are in groups; a group is written only if it changed.

    A group may be in several places of the line, so it has a text for each of its runs of pieces.
    """
    line = ["f'{head}'", "f'{kept.text}'"]
    groups: dict[str, list[list[_Piece]]] = {}
    for name, run in groupby(pieces[2:], _group_of):
        if not name:
            line += map(_total_source, run)
            continue
        found = groups.setdefault(name, [])
        line.append(f"f'{{t{list(groups).index(name)}_{len(found)}}}'")
        found.append(list(run))
    read, order = _group_reader([*groups.values()])
    texts = "".join(f"t{at}_{number}, " for at, runs in enumerate(groups.values()) for number in range(len(runs)))
    before, now = ["".join(f"{name}{at}, " for at in range(len(groups))) for name in "pg"]
    body = [f"n0, n8, n16, n24, {''.join(f'g{at}, ' for at in order)} = read(raw)",
            f"o0, o8, o16, o24, {before}{texts} = kept.state",
            "d0 = n0 - o0; d8 = n8 - o8; d16 = n16 - o16; d24 = n24 - o24",
            "if d0 < 0 or d8 < 0 or d16 < 0 or d24 < 0: return None"]  # fmt: skip
    names: dict[str, Any] = {"read": read}
    for at, runs in enumerate(groups.values()):
        names[f"unpack{at}"], source = _group_writer(at, runs)
        body += [f"if g{at} != p{at}:", *(f" {each}" for each in source)]
    body += [f"kept.raw, kept.state = raw, (n0, n8, n16, n24, {now}{texts})", f"return {' '.join(line)}"]
    nothing = (None,) * len(groups) + ("",) * texts.count(",")
    totals = struct.Struct("<4Q").unpack_from
    return lambda raw: totals(raw) + nothing, _function("head, raw, kept", body, names)


def _group_of(piece: _Piece) -> str:
    """The group of a piece: its medium, or that of all short counters."""
    if piece.kind in {_TIME, _FLOW, _GROWN, _END} or piece.name in _FOUR:
        return ""
    return piece.name.partition("_")[0] if piece.place.size == 8 else "short"


def _bytes_of(runs: Sequence[Sequence[_Piece]]) -> tuple[int, int]:
    """Offsets where the bytes of a group begin and end."""
    places = [piece.place for run in runs for piece in run]
    return min(place.offset for place in places), max(place.offset + place.size for place in places)


def _group_reader(groups: Sequence[Sequence[Sequence[_Piece]]]) -> tuple[Any, list[int]]:
    """A function that cuts totals and groups out of counters, and the order of the groups there."""
    pattern, at = "<4Q", 32
    places = sorted((*_bytes_of(runs), number) for number, runs in enumerate(groups))
    for begin, end, _ in places:
        pattern += f"{begin - at}x{end - begin}s"
        at = end
    return struct.Struct(pattern).unpack_from, [number for _, _, number in places]


def _total_source(piece: _Piece) -> str:
    """Source code that writes a piece of every line."""
    value = {_GROWN: f"d{piece.place.offset}", _END: ""}.get(piece.kind, f"n{piece.place.offset}")
    return f"{piece.before!r} f'{{{value}}}'" if value else repr(piece.before)


def _group_writer(at: int, runs: Sequence[Sequence[_Piece]]) -> tuple[Any, list[str]]:
    """Source code that writes a group, and the function for its numbers: a text for each of its runs of pieces."""
    places = sorted({piece.place for run in runs for piece in run})
    pattern, end = "<", _bytes_of(runs)[0]
    for place in places:
        pattern += f"{place.offset - end}x{'Q' if place.size == 8 else 'I'}"
        end = place.offset + place.size
    body = [f"{''.join(f'n{place.offset}, ' for place in places)} = unpack{at}(g{at})"]
    body += [f"s{sample} = n{sample}" for sample in sorted({place.sample for place in places if place.parts})]
    body += [
        f"n{place.offset} = n{place.offset} * 1000 // {place.parts} if n{place.offset} and s{place.sample} else 'null'"
        for place in places
        if place.parts
    ]
    for number, run in enumerate(runs):
        text = " ".join(f"{piece.before!r} f'{{n{piece.place.offset}}}'" for piece in run)
        body.append(f"t{at}_{number} = {text}")
    return struct.Struct(pattern).unpack, body
