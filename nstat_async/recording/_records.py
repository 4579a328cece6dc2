"""The content of a recording: records, and facts about the whole.

One rule for this file: a value here means the same in every format. The format
modules (`_native`, `_jsonlines`, `_bin`) translate; the code above them does not
know the format.
"""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import attrs

from nstat_async._errors import UsageError

MAX_DATAGRAM = 1 << 20
"""Longest datagram, bytes. The largest receive buffer that a kernel grants without privilege is smaller."""
MAX_NOTE = 1 << 20
"""Longest note, bytes of UTF-8."""
MAX_DOCUMENT = 4 << 20
"""Longest JSON document (facts, answers), bytes. An answer may list every process and its sockets."""
MAX_EXTRA = 1 << 20
"""Longest JSON object of further keys beside a record, bytes."""
MAX_LINE = 8 << 20
"""Longest line of a JSON Lines recording, bytes: a document in which every second character is escaped."""

NO_EXTRA: Mapping[str, Any] = MappingProxyType({})
"""The further keys of a record without any; one shared object."""
DRAINED: Mapping[str, Any] = MappingProxyType({"drained": True})
"""The further key of a received datagram after which its channel was empty; one shared object."""

NEXT = -1
"""The index of a record that gets the number of its place in the file when it is written."""

_TIME_MIN, _TIME_MAX = -(1 << 63), (1 << 63) - 1
_CLIENT_MAX = (1 << 32) - 1


class RecordKind(enum.Enum):
    """The kinds of records."""

    TO_KERNEL = "to_kernel"
    """A datagram that a client sent."""
    FROM_KERNEL = "from_kernel"
    """A datagram that a client received."""
    NOTE = "note"
    """A text by the person or program that recorded."""
    ANSWER = "answer"
    """The host's answer to a look-up (JSON), e.g. which process owns a socket."""
    STEP = "step"
    """Another input or command of the recorded core (JSON; the classes of `nstat_async.recording.steps`)."""
    META = "meta"
    """Facts about the recording changed; the new ones are in `Record.value`."""
    DAMAGE = "damage"
    """Bytes of the file that are no record; `Record.text` tells the reason and the place. Never written."""

    __hash__ = object.__hash__  # members are looked up for each record


class Record(NamedTuple):
    """One record: a tuple, because a recording has millions. ``_replace`` makes a changed one."""

    index: int  # type: ignore[assignment]  # a method of tuples, which records do not need
    """Its number in the file, from 0, without `META` records; in JSON Lines the line's ``"i"`` if it has one.
    A `META` record has the number of the record after it."""
    kind: RecordKind
    """What it is."""
    time_ns: int
    """Nanoseconds since the recording's zero (`RecordingInfo.started_ns`); in JSON Lines and ``.bin`` by the clock
    that the file was written with. A line without a time has the time of the line before."""
    client: int = 0
    """The client: each client is one socket (or, for a program with several sockets, one channel)."""
    data: bytes = b""
    """The datagram; of an `ANSWER` the JSON text if the format keeps it; of `DAMAGE` the first of its bytes."""
    text: str | None = None
    """The text of a `NOTE`; the reason of `DAMAGE`; else `None`, unless the file has a text there."""
    extra: Mapping[str, Any] = NO_EXTRA
    """Further keys of the record, as they were written."""
    value: Any = None
    """The JSON value of an `ANSWER` or a `STEP`; the `RecordingInfo` that holds from a `META` record on; else `None`."""

    def __hash__(self) -> int:
        """Hash without `extra` and `value`, which are JSON."""
        return hash(self[:6])


@attrs.frozen(kw_only=True)
class RecordingInfo:
    """Facts about a whole recording. A fact that the file does not have is `None`."""

    protocol: str | None = "ntstat"
    """``"ntstat"`` (Darwin), ``"sock_diag"`` (Linux), or another protocol of a newer version."""
    kernel: str | None = None
    """The kernel, e.g. ``"xnu-11417.121.6"``, or Linux' release string."""
    timebase: tuple[int, int] | None = None
    """Nanoseconds per tick of the kernel, as numerator and denominator."""
    layout: str | None = None
    """Name of the layout that the recorder had proven, if it had."""
    started_ns: int | None = None
    """Wall clock at the recording's time zero, nanoseconds since the epoch."""
    interfaces: Mapping[int, str] = attrs.field(factory=dict, hash=False)
    """Interface names by index, of the recorded machine."""
    tool: str | None = None
    """The program that wrote it, e.g. ``"nstat_async 0.1.0"``."""
    run: Mapping[str, Any] | None = attrs.field(default=None, hash=False)
    """The arguments of the recorded core (`Run`, by name), by which a replay can run it again. `None`: not known."""
    extra: Mapping[str, Any] = attrs.field(factory=dict, hash=False)
    """Further keys, as they were written. ``"xnu"`` is one if the file has more about the kernel than its name."""


_XNU = re.compile(r"xnu-\d+(?:\.\d+)*")


def kernel_name(text: str) -> str:
    """The kernel's name within a longer text: the first ``xnu-1.2.3``, else the text itself.

    A description of a kernel may name a second one later; the first is the described one.
    """
    found = _XNU.search(text)
    return found.group() if found else text.strip()


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _timebase(value: Any) -> tuple[int, int] | None:
    """A timebase as ``[125, 3]``, ``"125/3"`` or ``{"numer": 125, "denom": 3}``; `None` if it is none of them."""
    if isinstance(value, str):
        parts: Any = [int(part) for part in value.split("/") if part.isascii() and part.isdigit() and len(part) < 20]
    elif isinstance(value, Mapping):
        parts = [value.get("numer"), value.get("denom")]
    else:
        parts = value
    if isinstance(parts, (list, tuple)) and len(parts) == 2 and all(_is_int(p) and 0 < p < 1 << 32 for p in parts):
        return (parts[0], parts[1])
    return None


def _interfaces(value: Any) -> dict[int, str] | None:
    if not isinstance(value, Mapping):
        return None
    pairs = [(str(index), name) for index, name in value.items()]
    fits = all(i.isascii() and i.isdigit() and len(i) <= 10 and isinstance(name, str) for i, name in pairs)
    return {int(index): name for index, name in pairs} if fits else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


_FACTS: dict[str, Callable[[Any], Any]] = {
    "protocol": _text,
    "kernel": _text,
    "layout": _text,
    "tool": _text,
    "started_ns": lambda value: value if _is_int(value) and 0 <= value <= _TIME_MAX else None,
    "timebase": _timebase,
    "interfaces": _interfaces,
    "run": lambda value: value if isinstance(value, dict) else None,
}
"""How each fact is read; `None`: it is of the wrong type."""


def learn(facts: Any, before: RecordingInfo | None, kernel: str | None) -> RecordingInfo:
    """Read the facts of a JSON object; a fact of the wrong type stays visible in `extra`.

    Args:
        facts: The object. ``"xnu"`` is read as the kernel's name, and means Darwin.
        before: The facts that were known before; those that are not repeated stay.
        kernel: The kernel that the caller named, which replaces the file's.

    Raises:
        ValueError: It is not an object.
    """
    if not isinstance(facts, dict):
        raise ValueError("facts that are not a JSON object")  # noqa: TRY004  # it is the file's mistake
    before = before or RecordingInfo(protocol=None)
    extra, known = dict(before.extra), dict[str, Any]()
    for key, value in facts.items():
        fact = _FACTS[key](value) if key in _FACTS else None
        if fact is not None:
            known[key] = fact
        elif value is not None:
            extra[key] = value
    if "interfaces" in known:
        known["interfaces"] = {**before.interfaces, **known["interfaces"]}
    xnu = facts.get("xnu")
    if isinstance(xnu, str) and xnu.strip():
        known = {"protocol": "ntstat", "kernel": kernel_name(xnu), **known}
        if known["kernel"] == xnu:
            del extra["xnu"]
    info = attrs.evolve(before, **known, extra=extra)
    if kernel is None:
        return info
    return attrs.evolve(info, kernel=kernel_name(kernel), protocol=info.protocol or "ntstat")


def info_to_mapping(info: RecordingInfo) -> dict[str, Any]:
    """The facts as a JSON object, those that are `None` left out."""
    facts = {name: getattr(info, name) for name in _FACTS}
    known = {name: fact for name, fact in facts.items() if fact is not None and fact != {}}
    return {**info.extra, **{n: dict(fact) if isinstance(fact, Mapping) else fact for n, fact in known.items()}}


def damage_record(index: int, time_ns: int, reason: str, offset: int, length: int, data: bytes, **more: Any) -> Record:
    """A `DAMAGE` record; `extra` has the offset and length of the bytes in the (decompressed) file."""
    text = f"{reason} ({length} bytes at offset {offset})"
    extra = {"offset": offset, "length": length, **more}
    return Record(index, RecordKind.DAMAGE, time_ns, 0, data, text, extra)


_to_text = json.JSONEncoder(separators=(",", ":")).encode


def dump_json(value: Any, what: str, limit: int) -> bytes:
    """Compact ASCII JSON, of at most `limit` bytes; anything else is a UsageError about `what`."""
    try:
        text = _to_text(value).encode("ascii")
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"{what}: cannot be written as JSON: {error}") from error
    check_length(text, what, limit)
    return text


def check_length(data: bytes, what: str, limit: int) -> None:
    """Refuse to write a record that no reader would take.

    Raises:
        UsageError: It is longer than `limit`.
    """
    if len(data) > limit:
        raise UsageError(f"{what}: {len(data)} bytes; a recording takes {limit}")


def check_stamp(time_ns: int, client: int) -> None:
    """Refuse times and client numbers that a record has no room for.

    Raises:
        UsageError: One of them does not fit.
    """
    if not stamp_fits(time_ns, client):
        raise UsageError(
            f"time_ns {time_ns!r} or client {client!r}: not whole numbers of 64 bits signed, 32 bits unsigned"
        )


def stamp_fits(time_ns: Any, client: Any) -> bool:
    """True if both are integers that a record can hold."""
    return _is_int(time_ns) and _is_int(client) and _TIME_MIN <= time_ns <= _TIME_MAX and 0 <= client <= _CLIENT_MAX
