"""An emulated Darwin kernel for tests, which works on every machine.

`EmulatedKernel` answers the requests of the network-statistics control as the real
kernel of a chosen release does, byte for byte, for flows that a test scripts::

    kernel = EmulatedKernel("xnu-11417.121.6")
    flow = kernel.open_tcp(501, "curl", remote=("198.51.100.7", 443))
    async with Monitor(backend=kernel.backend(), interval=0.05) as monitor:
        ...
        flow.transfer(rx=10_000, tx=500)
        flow.close()

The names are imported at their first use, because the pytest plugin is in this package
and must not slow down other test suites.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._public import on_demand, only

if TYPE_CHECKING:
    from ._client import EmulatedClient
    from ._emulated import EmulatedKernel
    from ._faults import DARWIN_27_INSERTIONS, Faults
    from ._flows import EmulatedFlow
    from ._interfaces import EmulatedInterface
    from ._server import UnixServer, serve_unix
    from ._workload import Workload

__all__ = [
    "DARWIN_27_INSERTIONS",
    "EmulatedClient",
    "EmulatedFlow",
    "EmulatedInterface",
    "EmulatedKernel",
    "Faults",
    "UnixServer",
    "Workload",
    "serve_unix",
]

__dir__ = only(__all__)
__getattr__ = on_demand(
    __name__,
    {
        "._client": ("EmulatedClient",),
        "._emulated": ("EmulatedKernel",),
        "._faults": ("DARWIN_27_INSERTIONS", "Faults"),
        "._flows": ("EmulatedFlow",),
        "._interfaces": ("EmulatedInterface",),
        "._server": ("UnixServer", "serve_unix"),
        "._workload": ("Workload",),
    },
)
