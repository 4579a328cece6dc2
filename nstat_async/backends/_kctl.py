"""The backend ``kctl``: the kernel control of macOS."""

from __future__ import annotations

from typing import ClassVar

import attrs

from .._checks import check_flag_or_none
from .._contract import Feed
from .._io.system import DARWIN, require
from .._options import MonitorOptions
from ._loading import load


@attrs.frozen
class Kctl:
    """The kernel control of this Mac."""

    name: ClassVar[str] = "kctl"
    verify: bool | None = attrs.field(default=None, validator=check_flag_or_none)
    """Prove the layout with own loopback flows: always, never, or (`None`) on kernels newer than known."""

    def open(self, options: MonitorOptions) -> Feed:
        """Open it.

        Raises:
            BackendUnavailableError: No Darwin, no control, a sandbox, or an unknown kernel.
        """
        require(DARWIN, self.name, "the kernel control exists on macOS only")
        from .._io import darwin, kctl  # noqa: PLC0415  # for Macs
        from .._io.pump import KernelFeed  # noqa: PLC0415  # as above

        session = kctl.make_session(
            options,
            darwin.kernel_text(),
            darwin.timebase(),
            darwin.interface_names(),
            verify=self.verify,
            paths=True,
            ledger=True,
            coverage=True,
        )
        transport = kctl.KctlTransport(options)
        transport.prepare()
        return KernelFeed(session, transport, options=options)

    async def open_outside(self, options: MonitorOptions) -> Feed:
        """As `open`, but the modules are imported outside the event loop."""
        require(DARWIN, self.name, "the kernel control exists on macOS only")
        await load("_io.pump", "_io.kctl")
        return self.open(options)


def receive_limit() -> tuple[str, int | None]:
    """Name and value of the largest receive buffer that the system grants, bytes; `None` if it cannot be read."""
    from .._io.darwin import sysctl_integer  # noqa: PLC0415  # for Macs

    return "kern.ipc.maxsockbuf", sysctl_integer("kern.ipc.maxsockbuf")
