"""One message of a fleet: a header and lines of the public JSON, for one machine.

    {"v":1,"incarnation":"9f2c61d0","seq":17,"next":10.0}
    {"v":1,"event":"flow_updated",…}
    {"v":1,"event":"flow_removed",…}

Compressed (zlib) where it pays: the first byte tells. Who sent it is the subject's word, ``nstat.HOST.events`` or
``nstat.HOST.state``, because a server can see to it that a machine writes to its own subjects only; nothing in the
message says it once more. What others wrote is read with limits, and whatever is wrong with it is a `ProtocolError`.
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
"""Kinds of subjects: what happened, and the beginning of a complete state."""
LARGEST = 1 << 20
"""Bytes of a message that is not compressed; one that claims more is refused before they are made."""
LONGEST_LINE = 16 << 10
"""Bytes of a line, the header included: the flows of a machine are kept as they come."""
MOST_LINES = 8192
"""Lines of a message: each may become an event."""
_PAYS_FROM = 512
"""Bytes below which compressing costs more than it saves."""
_LEVEL = 1
_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}", re.ASCII)
_INCARNATION = re.compile(r"[0-9a-f]{8,32}", re.ASCII)
_LONGEST_PROMISE = 3600.0
_SHOWN = 200


@attrs.frozen(kw_only=True)
class Facts:
    """What a machine says of itself, at the beginning of each complete state."""

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
    """Version of this form."""
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
    """In the first part of a state."""


@attrs.frozen
class Message:
    """What is to be published."""

    subject: str
    """Where."""
    id: str
    """Distinguishes it from all others: the server drops what it has already."""
    data: bytes
    """The message."""
    events: int
    """Lines in it."""


def host_name(text: str) -> str:
    """A name that a machine can have: it is one word of a subject.

    Raises:
        UsageError: It is none.
    """
    if not isinstance(text, str) or not _HOST.fullmatch(text):
        raise UsageError(f"host: {text!r} is no name of 1 to 63 letters, digits, '-' and '_', such as 'web1'")
    return text


def subject_of(prefix: str, host: str, kind: str) -> str:
    """Where a machine publishes."""
    return f"{prefix}.{host}.{kind}"


def parse_subject(prefix: str, subject: str) -> tuple[str, str] | None:
    """Machine and kind; `None` for a subject that is none of ours."""
    words = subject.removeprefix(prefix + ".").split(".")
    if len(words) != 2 or words[1] not in {EVENTS, STATE} or not _HOST.fullmatch(words[0]):
        return None
    return words[0], words[1]


def encode(header: Header, lines: Iterable[str], *, compress: bool = True) -> bytes:
    """The bytes of a message.

    Args:
        header: Its first line.
        lines: Events as `nstat_async.json` writes them.
        compress: False: as text, for consumers that read it without this library.
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
        ProtocolError: It is none, or too large.
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
        raise ProtocolError(f"its header is no JSON: {error}", raw=data[:_SHOWN]) from error
    if not isinstance(found, dict) or found.get("v") != VERSION:
        raise ProtocolError("it is no message of version 1", raw=data[:_SHOWN])
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
        raise ProtocolError(f"incarnation {header.incarnation!r:.60} is none")
    if header.seq < 0 or (header.part is not None and header.part < 0) or not 0 < header.next <= _LONGEST_PROMISE:
        raise ProtocolError("a number of its header is out of range")
    return header
