"""Where events come from: values for `Monitor`'s parameter ``backend``.

| value | kernel |
|---|---|
| `auto()` | this machine's: `Kctl` on macOS, `SockDiag` on Linux |
| `Kctl()` | the kernel control ``com.apple.network.statistics`` (macOS) |
| `SockDiag()` | netlink sock_diag (Linux) |
| `UnixSocket(path, kernel)` | a Darwin kernel behind an AF_UNIX socket, real or emulated |
| `Replay(file)` | a recording |
| ``EmulatedKernel(...).backend()`` | an emulated kernel in this process (`nstat_async.testing`) |
"""

from __future__ import annotations

import os
import sys
from typing import BinaryIO, Union

import attrs

from ._contract import Backend, Feed
from ._errors import BackendUnavailableError, UnavailableReason, UsageError
from ._options import MonitorOptions

__all__ = ["Backend", "Kctl", "Replay", "SockDiag", "UnixSocket", "auto"]


@attrs.frozen
class Kctl:
    """The kernel control of this Mac."""

    verify: bool | None = None
    """Prove the layout with own loopback flows: always, never, or (`None`) on kernels newer than known."""

    @property
    def name(self) -> str:
        """``"kctl"``."""
        return "kctl"

    def open(self, options: MonitorOptions) -> Feed:
        """Open it.

        Raises:
            BackendUnavailableError: No Darwin, no control, a sandbox, or an unknown kernel.
        """
        from ._io import kctl  # noqa: PLC0415
        from ._io.pump import KernelFeed  # noqa: PLC0415
        from .ntstat import Kernel  # noqa: PLC0415

        platform: str = sys.platform
        if platform != "darwin":
            detail = f"this is {platform}; the kernel control exists on macOS only"
            raise BackendUnavailableError(self.name, UnavailableReason.PLATFORM, detail)
        from ._io import darwin  # noqa: PLC0415

        text = darwin.kernel_text()
        try:
            kernel = Kernel.parse(text)
        except UsageError as error:
            raise BackendUnavailableError(self.name, UnavailableReason.KERNEL, str(error)) from error
        transport = kctl.KctlTransport(options)
        transport.prepare()
        session = kctl.make_session(
            options,
            kernel,
            darwin.timebase(),
            darwin.interface_names(),
            verify=self.verify,
            path_of=darwin.process_path,
        )
        return KernelFeed(session, transport, options=options, kernel=text, protocol="ntstat")


@attrs.frozen
class SockDiag:
    """Netlink sock_diag of this Linux machine."""

    netns: str | int | tuple[str | int, ...] | None = None
    """Network namespace: a path or name, a pid, or several; `None`: the own one."""

    @property
    def name(self) -> str:
        """``"sock_diag"``."""
        return "sock_diag"

    def open(self, options: MonitorOptions) -> Feed:
        """Open it.

        Raises:
            BackendUnavailableError: No Linux, no netlink, or no access to the namespace.
        """
        platform: str = sys.platform
        if not platform.startswith("linux"):
            detail = f"this is {platform}; netlink exists on Linux only"
            raise BackendUnavailableError(self.name, UnavailableReason.PLATFORM, detail)
        from ._io.netlink import SockDiagBackend  # noqa: PLC0415

        return SockDiagBackend(self.netns).open(options)


@attrs.frozen
class UnixSocket:
    """A Darwin kernel behind an AF_UNIX SOCK_SEQPACKET socket: one packet, one datagram."""

    path: str
    kernel: str
    """Its version string, e.g. ``"xnu-11417.121.6"``."""
    timebase: tuple[int, int] = (1, 1)
    """Nanoseconds per tick of its clock."""
    interfaces: tuple[tuple[int, str], ...] = ()
    """Interface names by index, if they are known."""

    @property
    def name(self) -> str:
        """``"unix"``."""
        return "unix"

    def open(self, options: MonitorOptions) -> Feed:
        """Open it.

        Raises:
            BackendUnavailableError: Nobody listens there, or the kernel's version is not understood.
        """
        from ._io.kctl import make_session  # noqa: PLC0415
        from ._io.pump import KernelFeed  # noqa: PLC0415
        from ._io.unixlink import UnixTransport  # noqa: PLC0415
        from .ntstat import Kernel  # noqa: PLC0415

        try:
            kernel = Kernel.parse(self.kernel)
        except UsageError as error:
            raise BackendUnavailableError(self.name, UnavailableReason.KERNEL, str(error)) from error
        session = make_session(options, kernel, self.timebase, dict(self.interfaces), backend=self.name)
        transport = UnixTransport(self.path, options)
        transport.prepare()
        return KernelFeed(session, transport, options=options, kernel=self.kernel, protocol="ntstat")


@attrs.frozen
class Replay:
    """A recording of either protocol, in any of the formats of `nstat_async.recording`."""

    source: Union[str, os.PathLike[str], BinaryIO]
    """A path, ``"-"`` for standard input, or an open binary file."""
    kernel: str | None = None
    """The kernel's version, for recordings that do not carry it."""
    speed: float | None = None
    """1 plays as recorded; `None` as fast as possible."""
    timebase: tuple[int, int] | None = None
    """The kernel's timebase, for recordings that do not carry it."""

    @property
    def name(self) -> str:
        """``"replay"``."""
        return "replay"

    def open(self, options: MonitorOptions) -> Feed:
        """Open it.

        Raises:
            RecordingError: It is no recording, or its kernel is not known.
            UsageError: It cannot be opened.
        """
        from ._io.replay import ReplayFeed  # noqa: PLC0415

        if self.speed is not None and not self.speed > 0:
            raise UsageError(f"speed: {self.speed!r} is not a positive number")
        return ReplayFeed(self.source, options, kernel=self.kernel, speed=self.speed, timebase=self.timebase)


def auto() -> Backend:
    """The backend of this machine.

    Raises:
        BackendUnavailableError: There is none for this operating system.
    """
    platform: str = sys.platform
    if platform == "darwin":
        return Kctl()
    if platform.startswith("linux"):
        return SockDiag()
    detail = (
        f"no kernel interface is known for {platform}; an emulated kernel "
        "(nstat_async.testing.EmulatedKernel().backend()) and recordings (Replay) work everywhere"
    )
    raise BackendUnavailableError("auto", UnavailableReason.PLATFORM, detail)
