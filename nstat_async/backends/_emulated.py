"""The backend ``emulated``: something to watch wherever Python runs."""

from __future__ import annotations

import time
from typing import ClassVar

import attrs

from .._contract import Feed
from .._options import MonitorOptions
from ._kernels import check_kernel


@attrs.frozen
class Emulated:
    """An emulated Darwin kernel with a small random workload, for trying things out.

    Each opening makes a new one. To write the workload yourself, make an
    `nstat_async.testing.EmulatedKernel` and take its ``backend()``.
    """

    name: ClassVar[str] = "emulated"
    kernel: str = attrs.field(default="xnu-11417.121.6", validator=check_kernel)
    """The version of the kernel to emulate."""

    def open(self, options: MonitorOptions) -> Feed:
        """Make the emulated kernel.

        Raises:
            UsageError: There is no such kernel.
        """
        from ..testing import EmulatedKernel, Workload  # noqa: PLC0415  # upward, and only needed here

        emulated = EmulatedKernel(self.kernel, clock=time.monotonic)
        Workload(emulated, rate=2.0, size=20, mean_life=10.0).start()
        return emulated.backend().open(options)
