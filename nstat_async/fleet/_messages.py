"""One message of a fleet: a header and lines of the public JSON, for one machine.

    {"v":1,"incarnation":"9f2c61d0","seq":17,"next":10.0}
    {"v":1,"event":"flow_updated",…}
    {"v":1,"event":"flow_removed",…}

A message is compressed (zlib) if that saves space; its first byte tells. Only the subject names the machine,
``nstat.HOST.events`` or ``nstat.HOST.state``, because a server can make sure that a machine writes to its own subjects
only. A message is read with limits, because anybody may have written it, and any fault in it is a `ProtocolError`.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable

import attrs

from .._errors import ProtocolError, UsageError
from .._escape import dump
from .._model import Capabilities
from .._values import from_json, to_json

VERSION = 1
EVENTS, STATE = "events", "state"
"""Kinds of subjects: events, and parts of a complete state."""
LARGEST = 1 << 20
"""Most bytes of a message before compression; a message that claims more is refused before it is decompressed."""
LONGEST_LINE = 16 << 10
"""Most bytes of a line, also of the header: the flows of a machine are kept as they come."""
MOST_LINES = 8192
"""Most lines of a message: each may become an event."""
_PAYS_FROM = 512
"""Bytes below which compressing costs more than it saves."""
_LEVEL = 1
_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}", re.ASCII)
_INCARNATION = re.compile(r"[0-9a-f]{8,32}", re.ASCII)
_LONGEST_PROMISE = 3600.0
_SHOWN = 200


@attrs.frozen(kw_only=True)
class Facts:
    """Facts about a machine, which each complete state starts with."""

    machine_id: str | None = None
    """See `HostUpdated.machine_id`."""
    boot_id: str | None = None
    """See `HostUpdated.boot_id`."""
    labels: tuple[tuple[str, str], ...] = ()
    """See `HostUpdated.labels`."""
    capabilities: Capabilities | None = None
    """What its monitor can tell."""


@attrs.frozen(kw_only=True)
class Header:
    """The first line of a message."""

    v: int = VERSION
    """Version of the format."""
    incarnation: str
    """Distinguishes this run of the publisher from all others of the same machine."""
    seq: int
    """Number of the message in this run, from 0 on, without a gap."""
    next: float
    """Seconds after which the next message comes at the latest."""
    part: int | None = None
    """Number of this part of a complete state, from 0 on; `None`: the lines are events."""
    more: bool = False
    """True if another part of the state follows."""
    last: bool = False
    """True: the publisher stops."""
    facts: Facts | None = None
    """The machine's facts, in the first part of a state only."""


@attrs.frozen
class Message:
    """A message to publish."""

    subject: str
    """The subject to publish it to."""
    id: str
    """Distinguishes it from all others: the server drops a message that it has already."""
    data: bytes
    """The message's bytes."""
    events: int
    """Lines in it."""


def host_name(text: str) -> str:
    """Check a machine's name: it is one word of a subject.

    Raises:
        UsageError: The name is not valid.
    """
    if not isinstance(text, str) or not _HOST.fullmatch(text):
        raise UsageError(f"host: {text!r} is not a name of 1 to 63 letters, digits, '-' and '_', such as 'web1'")
    return text


def subject_of(prefix: str, host: str, kind: str) -> str:
    """The subject to which a machine publishes."""
    return f"{prefix}.{host}.{kind}"


def parse_subject(prefix: str, subject: str) -> tuple[str, str] | None:
    """Machine and kind; `None` for another kind of subject."""
    words = subject.removeprefix(prefix + ".").split(".")
    if len(words) != 2 or words[1] not in {EVENTS, STATE} or not _HOST.fullmatch(words[0]):
        return None
    return words[0], words[1]


def encode(header: Header, lines: Iterable[str], *, compress: bool = True) -> bytes:
    """The bytes of a message.

    Args:
        header: Its first line.
        lines: Events as `nstat_async.json` writes them.
        compress: False: plain text, for consumers that read it without this library.
    """
    first = {name: value for name, value in to_json(header).items() if value is not None and value is not False}
    data = "\n".join([dump(first), *lines]).encode("ascii")
    if compress and len(data) >= _PAYS_FROM:
        small = zlib.compress(data, _LEVEL)
        return small if len(small) < len(data) else data
    return data


def decode(data: bytes) -> tuple[Header, list[bytes]]:
    """Header and lines of a message.

    Raises:
        ProtocolError: The data is not a message, or too large.
    """
    plain = _plain(data)
    if plain.count(b"\n") > MOST_LINES:
        raise ProtocolError(f"it has more than {MOST_LINES} lines", raw=data[:_SHOWN])
    head, *lines = plain.split(b"\n")
    if len(head) > LONGEST_LINE:
        raise ProtocolError(f"its header has more than {LONGEST_LINE} bytes", raw=data[:_SHOWN])
    try:
        found = json.loads(head)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"its header is not JSON: {error}", raw=data[:_SHOWN]) from error
    if not isinstance(found, dict) or found.get("v") != VERSION:
        raise ProtocolError("it is not a message of version 1", raw=data[:_SHOWN])
    return _checked(from_json(Header, found)), lines


def _plain(data: bytes) -> bytes:
    if data[:1] == b"{":
        if len(data) > LARGEST:
            raise ProtocolError(f"it has more than {LARGEST} bytes")
        return data
    expand = zlib.decompressobj()
    try:
        plain = expand.decompress(data, LARGEST)
    except zlib.error as error:
        raise ProtocolError(f"it is neither JSON nor compressed: {error}", raw=data[:_SHOWN]) from error
    if not expand.eof or expand.unused_data:
        raise ProtocolError(f"it is cut off, or has more than {LARGEST} bytes", raw=data[:_SHOWN])
    return plain


def _checked(header: Header) -> Header:
    if not _INCARNATION.fullmatch(header.incarnation):
        raise ProtocolError(f"{header.incarnation!r:.60} is not an incarnation")
    if header.seq < 0 or (header.part is not None and header.part < 0) or not 0 < header.next <= _LONGEST_PROMISE:
        raise ProtocolError("a number of its header is out of range")
    return header
