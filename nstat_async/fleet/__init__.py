"""The two halves of a fleet, without I/O: one makes a machine's messages, the other makes events of many machines' messages.

- `Outgoing` takes the events of one monitor and makes `Message`s of them.
- `Incoming` takes `Delivery`s in the order of the stream, and makes events of them.
- `encode` and `decode` write and read one message.

None of them reads a clock or knows NATS: `nstat_async.integrations.nats.publish` and `nstat_async.backends.Fleet` add
these. ``docs/architecture.md`` says what a message is and why.
"""

from __future__ import annotations

from .._public import only
from ._incoming import Delivery, Incoming
from ._messages import STATE, Facts, Header, Message, decode, encode, host_name, subject_of
from ._outgoing import MOST_BYTES, Outgoing

__all__ = [
    "MOST_BYTES",
    "STATE",
    "Delivery",
    "Facts",
    "Header",
    "Incoming",
    "Message",
    "Outgoing",
    "decode",
    "encode",
    "host_name",
    "subject_of",
]

__dir__ = only(__all__)
