"""An emulated Darwin kernel for tests: every machine has one.

`EmulatedKernel` answers the requests of the network-statistics control as the real
kernel of a chosen release does, byte for byte, for flows that a test scripts::

    kernel = EmulatedKernel("xnu-11417.121.6")
    flow = kernel.open_tcp(501, "curl", remote=("198.51.100.7", 443))
    async with Monitor(backend=kernel.backend(), interval=0.05) as monitor:
        ...
        flow.transfer(rx=10_000, tx=500)
        flow.close()

The names are imported when they are used first: the pytest plugin lies in this package
and must not make other test suites slower.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .._public import only

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

_MODULES = {
    "DARWIN_27_INSERTIONS": "_faults",
    "EmulatedClient": "_client",
    "EmulatedFlow": "_flows",
    "EmulatedInterface": "_interfaces",
    "EmulatedKernel": "_emulated",
    "Faults": "_faults",
    "UnixServer": "_server",
    "Workload": "_workload",
    "serve_unix": "_server",
}


def __getattr__(name: str) -> Any:
    try:
        module = _MODULES[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    value = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    globals()[name] = value
    return value


__dir__ = only(__all__)
