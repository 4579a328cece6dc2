"""The table of fields: one row for each public field of values, events and rows.

JSON Lines in both directions, the SQLite schema, the columns of ``processes``, group keys and
the reference page are made from this table. To add a field, add it to its class (with a
docstring: the reference takes the explanation from there) and add a row here.

Rules for a row:

- The fields of a record have the order of the keys in JSON. A new one goes to the end, and is `later`:
  a line leaves it out if it is unknown. Fields of the first version are always in a line,
  as ``null`` if unknown. A key is never renamed.
- A new column in SQL has in `since` the schema that it came with; a file of an older schema gets it
  when it is opened for writing.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from ipaddress import ip_address
from operator import attrgetter
from typing import Any
from uuid import UUID

import attrs

from ._escape import quote
from ._events import (
    Auxiliary,
    AuxiliaryFailed,
    EventsLost,
    FlowAdded,
    FlowRemoved,
    FlowUpdated,
    HostState,
    HostUpdated,
    InterfaceUpdated,
    LossCause,
    PollCompleted,
    ProviderRefused,
    RemovalReason,
    RouteUpdated,
    SystemInfo,
    Unrecognized,
)
from ._model import (
    Attribution,
    Counts,
    Delta,
    Details,
    Direction,
    DomainInfo,
    Endpoint,
    Flow,
    Interface,
    InterfaceKind,
    MediumCounts,
    Outcome,
    Peer,
    Process,
    Provider,
    TcpState,
)
from ._rows import Row, RowKind

# --- kinds of values --------------------------------------------------------------------


@attrs.frozen
class Kind:
    """A type of fields: how its values become plain JSON values, and how these become values again."""

    name: str
    """Name of the type, for the reference."""
    plain: Callable[[Any], Any]
    """Makes a plain value of a value (never `None`)."""
    read: Callable[[Any], Any]
    """Makes a value of a plain value (never `None`); raises `ValueError` or `TypeError` for nonsense."""
    sql: str = "TEXT"
    """Type of a column."""
    text: Callable[[Any], str] | str | None = None
    """Makes JSON text of a value, if that is quicker than by the plain value: a function, or an expression of ``x``."""
    record: type | None = None
    """The class, if the values are records themselves."""
    empty: Any = None
    """The value that means the same as `None`."""


def _same(value: Any) -> Any:
    return value


def _must_be(kind: type) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if type(value) is not kind:
            raise TypeError(f"expected {kind.__name__}, got {value!r}")
        return value

    return read


_BEYOND = 1 << 1023
"""More than any integer that is read: exporters make floats of them."""


def _read_integer(value: Any) -> int:
    if type(value) is not int or not -_BEYOND < value < _BEYOND:
        raise TypeError(f"expected int of a float's size, got {value!r:.40}")
    return value


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _read_number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise TypeError(f"{value!r} is not a number")
    return float(value)


def _read_moment(value: Any) -> int:
    if abs(_must_be(int)(value)) >> 64:
        raise ValueError("a time has more than 64 bits")
    return int(value)


def number_text(value: float) -> str:
    return float.__repr__(float(value)) if math.isfinite(value) else "null"


def _seconds_text(ns: int) -> str:
    seconds, rest = divmod(ns, 1_000_000_000)
    return f"{seconds}.{rest // 1000:06d}" if seconds >= 0 else number_text(ns / 1e9)


def _one_of(kind: type[enum.Enum]) -> Kind:
    texts = {member: quote(member.value) for member in kind}
    return Kind(" ".join(f"`{member.value}`" for member in kind), attrgetter("value"), kind, text=texts.__getitem__)


def _read_address(text: Any) -> bytes:
    return ip_address(_must_be(str)(text)).packed


def _read_pairs(value: Any) -> tuple[tuple[str, int], ...]:
    return tuple((name, _read_integer(number)) for name, number in _must_be(dict)(value).items())


def _read_text_pairs(value: Any) -> tuple[tuple[str, str], ...]:
    return tuple((name, _must_be(str)(text)) for name, text in _must_be(dict)(value).items())


def _plain_settings(values: tuple[tuple[int, Any], ...]) -> list[list[Any]]:
    return [[key, _finite(value) if isinstance(value, float) else value] for key, value in values]


def _read_settings(value: Any) -> tuple[tuple[int, Any], ...]:
    found = []
    for key, item in _must_be(list)(value):
        if not isinstance(item, (int, float, str, type(None))):
            raise TypeError(f"{item!r} is neither a number nor a text")
        found.append((_must_be(int)(key), math.nan if item is None else item))
    return tuple(found)


def _read_holders(value: Any) -> tuple[tuple[int, str | None], ...]:
    return tuple(
        (_must_be(int)(pid), None if name is None else _must_be(str)(name)) for pid, name in _must_be(list)(value)
    )


def _plain_media(media: tuple[tuple[str, MediumCounts], ...]) -> dict[str, dict[str, int]]:
    return {name: attrs.asdict(counts) for name, counts in media}


def _read_media(value: Any) -> tuple[tuple[str, MediumCounts], ...]:
    names = [field.name for field in attrs.fields(MediumCounts)]
    return tuple(
        (medium, MediumCounts(*(_read_integer(_must_be(dict)(item)[name]) for name in names)))
        for medium, item in _must_be(dict)(value).items()
    )


def _plain_key(key: Hashable) -> Any:
    if isinstance(key, enum.Enum):
        return key.value
    return key if isinstance(key, (int, str)) else str(key)


def _read_key(value: Any) -> int | str:
    if type(value) is not int and not isinstance(value, str):
        raise TypeError(f"{value!r} is neither a number nor a text")
    return value


def _plain_row_kind(value: RowKind | str) -> str:
    return value.value if isinstance(value, RowKind) else value


def _read_row_kind(value: Any) -> RowKind:
    return RowKind.GROUP if value == "process" else RowKind(value)


def _record(kind: type) -> Kind:
    return Kind(kind.__name__, _same, _same, record=kind)


INTEGER = Kind("integer", _same, _read_integer, "INTEGER", text="x + 0")  # an IntEnum is a number, too
MOMENT = attrs.evolve(INTEGER, read=_read_moment)
NUMBER = Kind("number", _finite, _read_number, "REAL", text=number_text)
FLAG = Kind("true or false", bool, _must_be(bool), "INTEGER", text="'true' if x else 'false'")
TEXT = Kind("text", _same, _must_be(str), text=quote)
BYTES = Kind("bytes as hex", bytes.hex, lambda text: bytes.fromhex(_must_be(str)(text)), empty=b"")
UUID_TEXT = Kind("UUID", str, lambda text: UUID(_must_be(str)(text)), text="f'\"{x}\"'")
ADDRESS = Kind("address", _same, _read_address, text="f'\"{x}\"'")
NANOSECONDS = Kind("number", lambda ns: ns / 1e9, _read_number, text=_seconds_text)
PAIRS = Kind("object of integers", dict, _read_pairs)
TEXT_PAIRS = Kind("object of texts", dict, _read_text_pairs)
SETTINGS = Kind("list of [key, value]", _plain_settings, _read_settings)
HOLDERS = Kind("list of [pid, name]", lambda pairs: [list(pair) for pair in pairs], _read_holders, empty=())
MEDIA = Kind("object of MediumCounts", _plain_media, _read_media, empty=())
KEY = Kind("text or integer", _plain_key, _read_key)
ROW_KIND = attrs.evolve(_one_of(RowKind), plain=_plain_row_kind, read=_read_row_kind, text=None)


# --- rows -------------------------------------------------------------------------------


class SqlTable(enum.Enum):
    """The tables of a history whose columns are fields."""

    PROCESS = "process"
    """Columns that identify a row."""
    TRAFFIC = "traffic"
    """Counters of each row and bucket."""


@attrs.frozen
class Field:
    """One public field."""

    name: str
    """The attribute, and the constructor's argument."""
    kind: Kind
    """Type of the value."""
    unit: str = attrs.field(default="", kw_only=True)
    """Unit of a number."""
    platform: str = attrs.field(default="", kw_only=True)
    """Platform that has it; empty: every one."""
    key: str = attrs.field(kw_only=True)
    """Its key in JSON."""
    later: bool = attrs.field(default=False, kw_only=True)
    """True: JSON leaves it out if it is unknown or empty."""
    full: bool = attrs.field(default=False, kw_only=True)
    """True: only full lines have it, because it is long."""
    derived: bool = attrs.field(default=False, kw_only=True)
    """True: it is made of other fields, and not an argument of the constructor."""
    sql: SqlTable | None = attrs.field(default=None, kw_only=True)
    """The table that has a column for it; `None`: no table."""
    since: int = attrs.field(default=1, kw_only=True)
    """The schema that brought the column."""
    heading: str = attrs.field(default="", kw_only=True)
    """Heading of its column in ``processes``; empty: no column."""
    group: str = attrs.field(default="", kw_only=True)
    """Name of the grouping by this field (`GroupBy.field`); empty: no grouping."""
    get: Callable[[Any], Any] | None = attrs.field(default=None, kw_only=True, repr=False)
    """Reads the value; `None`: the value is the attribute of this name."""

    @key.default
    def _same_as_name(self) -> str:
        return self.name

    def value_of(self, value: Any) -> Any:
        """This field of a value."""
        return getattr(value, self.name) if self.get is None else self.get(value)

    def is_absent(self, value: Any) -> bool:
        """True if a line leaves this value out."""
        return self.later and (value is None or value == self.kind.empty)


@attrs.frozen
class Record:
    """A class of values, with its fields in the order of the JSON keys."""

    cls: type
    fields: tuple[Field, ...]
    event: str | None = None
    """Name of the event in JSON; `None` if it is not an event."""
    nullable: frozenset[str] = attrs.field(init=False, repr=False, eq=False)
    """Names of the fields that may be `None`."""

    @nullable.default
    def _find_nullable(self) -> frozenset[str]:
        if not attrs.has(self.cls):  # Counts: all of them
            return frozenset(field.name for field in self.fields)
        return frozenset(each.alias or each.name for each in attrs.fields(self.cls) if "None" in str(each.type))


@attrs.frozen
class FieldTable:
    """The table of all records."""

    records: tuple[Record, ...]
    _by_class: Mapping[type, Record] = attrs.field(init=False, repr=False, eq=False)
    events: Mapping[str, Record] = attrs.field(init=False, repr=False, eq=False)
    """The records of events, by the event's name in JSON."""

    @_by_class.default
    def _index(self) -> Mapping[type, Record]:
        found = {record.cls: record for record in self.records}
        for record in self.records:
            if record.event is None:  # a base without a record has that of its subclass
                for base in record.cls.__mro__[:-1]:
                    found.setdefault(base, record)
        return found

    @events.default
    def _index_events(self) -> Mapping[str, Record]:
        return {record.event: record for record in self.records if record.event is not None}

    def of(self, cls: type) -> Record:
        """The record of a class, or of its nearest base that has one.

        Raises:
            LookupError: The table has no such record.
        """
        for each in cls.__mro__:
            found = self._by_class.get(each)
            if found is not None:
                return found
        raise LookupError(cls.__name__)

    def columns(self, table: SqlTable) -> tuple[tuple[type, Field], ...]:
        """The fields that are columns of a table in SQL, each with its class."""
        return tuple((record.cls, field) for record in self.records for field in record.fields if field.sql is table)

    @property
    def schema_version(self) -> int:
        """The newest version of the SQLite schema."""
        return max(field.since for table in SqlTable for _, field in self.columns(table))


# --- the table --------------------------------------------------------------------------

_int = partial(Field, kind=INTEGER)
_text = partial(Field, kind=TEXT)
_bytes = partial(Field, kind=INTEGER, unit="bytes")
_packets = partial(Field, kind=INTEGER, unit="packets")
_moment = partial(Field, kind=NUMBER, unit="seconds since the epoch")
_mac = partial(Field, platform="macOS", later=True)
_linux = partial(Field, platform="Linux", later=True)
_sample = partial(Field, kind=INTEGER, later=True)
_TIME = _moment("time")
_FLOW = Field("flow", _record(Flow))
_COUNTS = Field("counts", _record(Counts))
_HOST = _text("host", later=True)
_DETAILS = Field("details", _record(Details), later=True, full=True)
_OUTCOME = _one_of(Outcome)
_FOUR = (_bytes("rx_bytes"), _bytes("tx_bytes"), _packets("rx_packets"), _packets("tx_packets"))


def _if_counted(name: str) -> Callable[[Row], Any]:
    return lambda row: getattr(row, name) if row.is_counted else None


def _row_kind(row: Row) -> RowKind | str:
    return row.kind if row.process is None or row.kind is not RowKind.GROUP else "process"


def _row_key(row: Row) -> Hashable:
    return row.key if row.process is None else None


def _traffic(name: str, heading: str = "", unit: str = "") -> Field:
    return Field(name, INTEGER, heading=heading, unit=unit, sql=SqlTable.TRAFFIC, get=_if_counted(name))


TABLE = FieldTable((
    Record(Endpoint, (
        Field("packed", ADDRESS, key="address", get=attrgetter("address")),
        _int("port"),
        _int("scope_id", key="scope"),
    )),
    Record(Process, (
        _int("pid", sql=SqlTable.PROCESS),
        _text("name", sql=SqlTable.PROCESS, group="process name"),
        _int("unique_pid", sql=SqlTable.PROCESS),
        _int("effective_pid", platform="macOS"),
        Field("uuid", UUID_TEXT, platform="macOS"),
        _int("uid", sql=SqlTable.PROCESS, group="user"),
        _text("path", sql=SqlTable.PROCESS),
        _mac("effective_unique_pid", INTEGER),
        _mac("effective_uuid", UUID_TEXT),
        _mac("persona_id", INTEGER),
        _mac("responsible_uuid", UUID_TEXT),
        _linux("title", TEXT, group="process title"),
        _linux("user", TEXT, sql=SqlTable.PROCESS, since=3),
        _linux("parent_pid", INTEGER, group="parent process"),
        Field("started", NANOSECONDS, derived=True, later=True, platform="Linux", unit="seconds since the epoch", get=attrgetter("started_ns")),
        _linux("started_ns", MOMENT, unit="nanoseconds since the epoch"),
        _linux("command_line", TEXT, key="cmdline", sql=SqlTable.PROCESS, since=3),
        _linux("attribution", _one_of(Attribution)),
    )),
    Record(Interface, (
        _int("index"),
        _text("name"),
        Field("kind", _one_of(InterfaceKind), group="interface kind"),
        _mac("properties", INTEGER),
    )),
    Record(Flow, (
        _text("id", group="flow"),
        Field("provider", _one_of(Provider), group="provider"),
        Field("userland", FLAG, platform="macOS"),
        Field("local", _record(Endpoint)),
        Field("remote", _record(Endpoint)),
        Field("process", _record(Process)),
        Field("interface", _record(Interface)),
        Field("state", _one_of(TcpState), group="state"),
        Field("direction", _one_of(Direction), group="direction"),
        Field("started", NANOSECONDS, derived=True, unit="seconds since the epoch", get=attrgetter("started_ns")),
        _linux("namespace", TEXT, group="network namespace"),
        Field("started_ns", MOMENT, unit="nanoseconds since the epoch", later=True),
        _mac("uuid", UUID_TEXT),
        _mac("parent_uuid", UUID_TEXT),
        _int("provider_id", later=True),
        _mac("traffic_class", INTEGER),
        _mac("fallback_mode", INTEGER),
        _mac("vpn_uuid", UUID_TEXT),
        _linux("attribution", _one_of(Attribution)),
        _linux("protocol", INTEGER),
        _linux("parent", TEXT),
        _text("host", later=True, group="host"),
        Field("peer", _record(Peer), later=True),
        _linux("cgroup", TEXT, group="cgroup path"),
        _linux("unit", TEXT, derived=True, group="unit"),
        _linux("container", TEXT, group="container"),
        _linux("container_id", TEXT, derived=True),
        _linux("pod", TEXT, group="pod"),
        _linux("pod_uid", TEXT, derived=True),
        _linux("other_holders", INTEGER),
        _linux("holders", HOLDERS),
        Field("outcome", _OUTCOME, later=True, group="outcome"),
    )),
    Record(Peer, (
        _text("host", group="peer host"),
        Field("process", _record(Process)),
        _text("flow"),
    )),
    Record(MediumCounts, _FOUR),
    Record(Counts, (
        *_FOUR,
        _bytes("rx_duplicate_bytes", platform="macOS"),
        _bytes("rx_out_of_order_bytes", platform="macOS"),
        _bytes("tx_retransmitted_bytes"),
        _int("min_rtt_us", unit="microseconds"),
        _int("avg_rtt_us", unit="microseconds"),
        _int("var_rtt_us", unit="microseconds"),
        *(_bytes(f"{medium}_{way}_bytes", platform="macOS") for medium in ("cell", "wifi", "wired") for way in ("rx", "tx")),
        _mac("connect_attempts", INTEGER),
        _mac("connect_successes", INTEGER),
        _mac("media", MEDIA),
        *(_mac(f"loopback_{way}_bytes", INTEGER, unit="bytes", derived=True) for way in ("rx", "tx")),
    )),
    Record(Delta, _FOUR),
    Record(DomainInfo, (
        _mac("name", TEXT),
        _mac("owner", TEXT),
        _mac("tracker_context", TEXT),
        _mac("attributed_bundle_id", TEXT),
        _mac("remote", _record(Endpoint)),
        _mac("is_tracker", FLAG),
        _mac("is_non_app_initiated", FLAG),
        _mac("is_silent", FLAG),
    )),
    Record(Details, (
        _text("congestion_control", later=True),
        _sample("congestion_window", unit="bytes"),
        _sample("send_window", unit="bytes"),
        _sample("unacked_bytes", unit="bytes"),
        _sample("send_buffer_size", unit="bytes"),
        _sample("send_buffer_used", unit="bytes"),
        _sample("receive_buffer_size", unit="bytes"),
        _sample("receive_buffer_used", unit="bytes"),
        _mac("traffic_mgt_flags", INTEGER),
        _mac("connection_status", INTEGER),
        _mac("rx_transfer_size", INTEGER, unit="bytes"),
        _mac("tx_transfer_size", INTEGER, unit="bytes"),
        _mac("activity_started_s", INTEGER, unit="seconds of uptime"),
        _mac("activity", INTEGER, unit="bits of 8 seconds"),
        _mac("sampled_at_ns", INTEGER, unit="nanoseconds since the epoch"),
        _mac("domain", _record(DomainInfo)),
        _mac("original_domain", _record(DomainInfo)),
        _mac("necp_parameters", BYTES),
        _mac("original_necp_parameters", BYTES),
        _mac("bluetooth", _record(MediumCounts)),
        _mac("undecoded", BYTES),
        _linux("cgroup_id", INTEGER, group="cgroup"),
        _linux("mark", INTEGER),
        _linux("delivery_rate", INTEGER, unit="bytes per second"),
        _linux("pacing_rate", INTEGER, unit="bytes per second"),
        _linux("min_rtt_us", INTEGER, unit="microseconds"),
        _linux("retransmits", INTEGER, unit="segments"),
        _linux("lost", INTEGER, unit="segments"),
        _linux("mss", INTEGER, unit="bytes"),
        _linux("path_mtu", INTEGER, unit="bytes"),
        _linux("rto_us", INTEGER, unit="microseconds"),
        _linux("inode", INTEGER),
    )),
    Record(FlowAdded, (_TIME, _FLOW, _COUNTS, Field("preexisting", FLAG), _DETAILS), "flow_added"),
    Record(FlowUpdated, (
        _TIME,
        _FLOW,
        _COUNTS,
        Field("delta", _record(Delta), derived=True),
        Field("previous", _record(Counts), full=True),
        _DETAILS,
    ), "flow_updated"),
    Record(FlowRemoved, (
        _TIME,
        _FLOW,
        _COUNTS,
        Field("final", FLAG),
        Field("reason", _one_of(RemovalReason)),
        _DETAILS,
        _linux("uncertainty", INTEGER, unit="bytes"),
        Field("outcome", _OUTCOME, derived=True, later=True),
    ), "flow_removed"),
    Record(PollCompleted, (
        _TIME,
        _int("flows"),
        Field("complete", FLAG),
        _int("serial", later=True),
        _HOST,
    ), "poll_completed"),
    Record(EventsLost, (
        _TIME,
        Field("cause", _one_of(LossCause)),
        _int("count"),
        _COUNTS,
        _text("detail"),
        _HOST,
    ), "events_lost"),
    Record(ProviderRefused, (
        _TIME,
        Field("provider", _one_of(Provider)),
        _int("errno"),
        _text("detail"),
        _HOST,
    ), "provider_refused"),
    Record(AuxiliaryFailed, (
        _TIME,
        Field("auxiliary", _one_of(Auxiliary)),
        _text("detail"),
        _HOST,
    ), "auxiliary_failed"),
    Record(InterfaceUpdated, (
        _TIME,
        Field("interface", _record(Interface)),
        _text("description"),
        _int("threshold", unit="bytes"),
        _COUNTS,
        Field("link", PAIRS),
        _HOST,
    ), "interface_updated"),
    Record(RouteUpdated, (
        _TIME,
        _text("id"),
        Field("destination", _record(Endpoint)),
        Field("mask", _record(Endpoint)),
        Field("gateway", _record(Endpoint)),
        Field("interface", _record(Interface)),
        _int("flags"),
        _COUNTS,
        Field("removed", FLAG),
        _HOST,
    ), "route_updated"),
    Record(SystemInfo, (_TIME, Field("values", SETTINGS), _HOST), "system_info"),
    Record(Unrecognized, (
        _TIME,
        _int("number", key="type_number"),
        Field("data", BYTES, key="raw"),
        _HOST,
    ), "unrecognized"),
    Record(HostUpdated, (
        _TIME,
        _text("host"),
        Field("state", _one_of(HostState)),
        _text("machine_id"),
        _text("boot_id"),
        Field("labels", TEXT_PAIRS),
        Field("clock_offset", NUMBER, unit="seconds"),
        _moment("last_heard"),
        _text("detail"),
    ), "host_updated"),
    Record(Row, (
        _int("pid", derived=True, heading="PID"),
        _text("name", derived=True, heading="PROCESS"),
        _int("flows", heading="FLOWS", sql=SqlTable.TRAFFIC),
        _int("open_flows", heading="OPEN"),
        _traffic("rx_bytes", "RX", unit="bytes"),
        _traffic("tx_bytes", "TX", unit="bytes"),
        _traffic("rx_packets", unit="packets"),
        _traffic("tx_packets", unit="packets"),
        Field("rx_rate", NUMBER, unit="bytes per second", heading="RX/S", get=_if_counted("rx_rate")),
        Field("tx_rate", NUMBER, unit="bytes per second", heading="TX/S", get=_if_counted("tx_rate")),
        _int("unique_pid", derived=True),
        Field("kind", ROW_KIND, sql=SqlTable.PROCESS, get=_row_kind),
        _int("uncounted_flows", sql=SqlTable.TRAFFIC),
        _text("source", sql=SqlTable.PROCESS),
        Field("key", KEY, later=True, get=_row_key),
        Field("process", _record(Process), later=True),
        _text("text", later=True),
        _moment("first_seen", later=True),
        _moment("last_seen", later=True),
        _linux("cgroup", TEXT, sql=SqlTable.PROCESS, since=2),
        _linux("unit", TEXT, derived=True, sql=SqlTable.PROCESS, since=2, heading="UNIT"),
        _linux("container", TEXT, sql=SqlTable.PROCESS, since=2, heading="CONTAINER"),
        _linux("pod", TEXT, sql=SqlTable.PROCESS, since=2),
        _mac("media", MEDIA, heading="MEDIA"),
    )),
))  # fmt: skip
"""The table."""
