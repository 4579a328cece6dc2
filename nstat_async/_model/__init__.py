"""The values that users hold: flows, their endpoints, owners and counters.

Two rules for this package:

- *Unknown is `None`.* A field that the platform does not tell is `None`, on every
  platform; ``0`` and ``""`` mean that the kernel said so.
- *Values are immutable and hashable*. Their names have the unit, unless it is
  bytes or packets.

A quick replay has half a million reports a second. So an event keeps what the kernel sent, makes
`Counts` of it when they are read, and these translate a field when it is read. Everything else is made
once per flow and shared by its events. A machine may have very many flows, so flows and endpoints
have no slot for weak references.
"""

from __future__ import annotations

from ._capabilities import Capabilities, Proof, Visibility
from ._counts import (
    COUNTS_FIELDS,
    Counts,
    CountsForm,
    Delta,
    Four,
    MediumCounts,
    Place,
    began_anew,
    counts_of,
    growth,
    packets_grown,
)
from ._details import Details, DetailsSource, DomainInfo
from ._flow import IPV4_MAPPED, Endpoint, Flow, Interface, Peer, Process, is_loopback, unmapped
from ._kinds import UNCOUNTED_PROVIDERS, Attribution, Direction, InterfaceKind, Outcome, Provider, TcpState

__all__ = [
    "COUNTS_FIELDS",
    "IPV4_MAPPED",
    "UNCOUNTED_PROVIDERS",
    "Attribution",
    "Capabilities",
    "Counts",
    "CountsForm",
    "Delta",
    "Details",
    "DetailsSource",
    "Direction",
    "DomainInfo",
    "Endpoint",
    "Flow",
    "Four",
    "Interface",
    "InterfaceKind",
    "MediumCounts",
    "Outcome",
    "Peer",
    "Place",
    "Process",
    "Proof",
    "Provider",
    "TcpState",
    "Visibility",
    "began_anew",
    "counts_of",
    "growth",
    "is_loopback",
    "packets_grown",
    "unmapped",
]
