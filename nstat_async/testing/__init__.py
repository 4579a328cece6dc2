"""An emulated Darwin kernel for tests: every machine has one.

`EmulatedKernel` answers the requests of the network-statistics control as the real
kernel of a chosen release does, byte for byte, for flows that a test scripts.
"""

from ._client import EmulatedClient
from ._faults import DARWIN_27_INSERTION, Faults
from ._flows import EmulatedFlow
from ._interfaces import EmulatedInterface
from ._kernel import EmulatedKernel
from ._server import UnixServer, serve_unix
from ._socket import SocketStatistics
from ._workload import Workload

__all__ = [
    "DARWIN_27_INSERTION",
    "EmulatedClient",
    "EmulatedFlow",
    "EmulatedInterface",
    "EmulatedKernel",
    "Faults",
    "SocketStatistics",
    "UnixServer",
    "Workload",
    "serve_unix",
]
