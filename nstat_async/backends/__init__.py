"""Where events come from: values for `Monitor`'s parameter ``backend``, and what a backend of your own needs.

| value | name | kernel |
|---|---|---|
| `auto()` | ``auto`` | this machine's: `Kctl` on macOS, `SockDiag` on Linux |
| `Kctl()` | ``kctl`` | the kernel control ``com.apple.network.statistics`` (macOS) |
| `SockDiag()` | ``sock_diag`` | netlink sock_diag (Linux) |
| `Emulated()` | ``emulated`` | an emulated Darwin kernel with a small random workload |
| `UnixSocket(path, kernel)` | ``unix:PATH`` | a Darwin kernel behind an AF_UNIX socket, real or emulated |
| `Replay(file)` | ``replay:FILE`` | a recording |
| `Fleet(url)` | ``fleet:URL`` | those of all machines that publish to a NATS server |
| ``EmulatedKernel(...).backend()`` | | an emulated kernel of your own making (`nstat_async.testing`) |

``Monitor(backend="sock_diag")`` and ``--backend sock_diag`` take the same names.

A backend of your own is a `Backend` that opens a `Feed`. Either write the feed, or write a `Core`
(the logic) and a `Transport` (the sockets), and let `KernelFeed` run them: it brings the event
loop, worker threads, fair turns, recording, and the isolation of what may fail.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._contract import (
    Backend,
    Channel,
    CloseChannel,
    Command,
    Core,
    Feed,
    Finishes,
    HoldsBack,
    KnowsHosts,
    Lookup,
    LookupFailed,
    OpenChannel,
    OpensOutside,
    Send,
    Settles,
    Sink,
    Transport,
)
from .._io.channel import SocketChannel
from .._public import explain, on_demand, only
from ._kctl import Kctl
from ._registry import auto, named
from ._sock_diag import SockDiag

if TYPE_CHECKING:
    from .._io.jetstream import StreamSettings
    from .._io.nats_access import NatsAccess
    from .._io.pump import KernelFeed
    from ._emulated import Emulated
    from ._fleet import Fleet
    from ._replay import Replay
    from ._unix import UnixSocket

__all__ = [
    "Backend",
    "Channel",
    "CloseChannel",
    "Command",
    "Core",
    "Emulated",
    "Feed",
    "Finishes",
    "Fleet",
    "HoldsBack",
    "Kctl",
    "KernelFeed",
    "KnowsHosts",
    "Lookup",
    "LookupFailed",
    "NatsAccess",
    "OpenChannel",
    "OpensOutside",
    "Replay",
    "Send",
    "Settles",
    "Sink",
    "SockDiag",
    "SocketChannel",
    "StreamSettings",
    "Transport",
    "UnixSocket",
    "auto",
    "named",
]
__dir__ = only(__all__)
explain(__all__, globals())
__getattr__ = on_demand(
    __name__,
    {
        "._emulated": ("Emulated",),
        "._fleet": ("Fleet",),
        "._replay": ("Replay",),
        "._unix": ("UnixSocket",),
        ".._io.jetstream": ("StreamSettings",),
        ".._io.nats_access": ("NatsAccess",),
        ".._io.pump": ("KernelFeed",),
    },
)
