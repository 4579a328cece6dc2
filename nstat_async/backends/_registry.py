"""The one table of backends: the name of each, how to make it, where it works, and what the doctor examines.

A new backend is a module beside this one and a row here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import attrs

from .._contract import Backend
from .._errors import BackendUnavailableError, UnavailableReason, UsageError
from .._io import system
from .._io.system import DARWIN, LINUX, is_here
from . import _kctl, _sock_diag
from ._kctl import Kctl
from ._sock_diag import Namespace, SockDiag


@attrs.frozen(kw_only=True)
class Given:
    """The arguments that come with a name, on the command line or of `named`."""

    rest: str
    """What follows the colon."""
    kernel: str | None
    netns: tuple[Namespace, ...]


@attrs.frozen
class Row:
    """One backend."""

    name: str
    """As the command line and `Monitor` take it."""
    make: Callable[[Given], Backend]
    takes: str | None = None
    """A word for the text that has to follow the name and a colon; `None`: nothing may follow."""
    namespaces: bool = False
    """True if network namespaces can be checked."""
    platform: str | None = None
    """The operating system whose kernel it is; `None`: not this machine's kernel."""
    examine: Callable[[], Backend] | None = None
    """Makes the backend that the doctor opens; `None`: it opens none."""
    receive_limit: Callable[[], tuple[str, int | None]] | None = None
    """Name and value of the system's limit for receive buffers."""

    @property
    def text(self) -> str:
        """The form of its name: ``kctl``, ``unix:PATH``."""
        return self.name if self.takes is None else f"{self.name}:{self.takes}"


def _auto(given: Given) -> Backend:
    return SockDiag(given.netns) if given.netns else auto()


def _sock(given: Given) -> Backend:
    return SockDiag(given.netns or (None,))


def _emulated(given: Given) -> Backend:
    from ._emulated import Emulated  # noqa: PLC0415  # which few need

    return Emulated() if given.kernel is None else Emulated(given.kernel)


def _unix(given: Given) -> Backend:
    if given.kernel is None:
        raise UsageError(
            "backend unix:PATH needs the kernel that speaks there, e.g. xnu-11417.121.6: "
            "--kernel on the command line, backends.UnixSocket(path, kernel) in a program"
        )
    from ._unix import UnixSocket  # noqa: PLC0415  # as above

    return UnixSocket(given.rest, given.kernel)


def _replay(given: Given) -> Backend:
    from ._replay import Replay  # noqa: PLC0415  # as above

    return Replay(given.rest, kernel=given.kernel)


def _fleet(given: Given) -> Backend:
    from ._fleet import Fleet  # noqa: PLC0415  # as above

    return Fleet(given.rest)


ROWS = (
    Row("auto", _auto, namespaces=True),
    Row(
        "kctl",
        lambda _: Kctl(),
        platform=DARWIN,
        examine=lambda: Kctl(verify=True),
        receive_limit=_kctl.receive_limit,
    ),
    Row(
        "sock_diag",
        _sock,
        namespaces=True,
        platform=LINUX,
        examine=SockDiag,
        receive_limit=_sock_diag.receive_limit,
    ),
    Row("emulated", _emulated),
    Row("unix", _unix, takes="PATH"),
    Row("replay", _replay, takes="FILE"),
    Row("fleet", _fleet, takes="URL"),
)


def choices() -> str:
    """All names, for messages."""
    return ", ".join(row.text for row in ROWS)


def parse(text: str) -> tuple[Row, str]:
    """The row of a name, and the text after the colon; a UsageError lists the names that exist."""
    name, colon, rest = text.partition(":") if isinstance(text, str) else ("", "", "")
    for row in ROWS:
        if row.name == name and (bool(rest) if row.takes else not colon):
            return row, rest
    raise UsageError(f"backend: {text!r} is not one of {choices()}")


def named(text: str, *, kernel: str | None = None, netns: Namespace | Sequence[Namespace] = ()) -> Backend:
    """The backend of a name, as the command line takes it.

    Args:
        text: ``auto``, ``kctl``, ``sock_diag``, ``emulated``, ``unix:PATH``, ``replay:FILE`` or ``fleet:URL``.
        kernel: Version of a Darwin kernel, if it is not known otherwise, e.g. ``xnu-11417.121.6``.
        netns: Linux: network namespaces to watch, as `SockDiag.netns`.

    Raises:
        UsageError: There is no such backend, or it does not take these arguments.
        BackendUnavailableError: ``auto``, and there is none for this operating system.
    """
    row, rest = parse(text)
    namespaces: tuple[Any, ...] = tuple(netns) if isinstance(netns, (list, tuple)) else (netns,)
    if namespaces and not row.namespaces:
        raise UsageError(f"netns: backend {row.name} has no network namespaces")
    if kernel is not None and row.name == "fleet":
        raise UsageError("kernel: a fleet has none; each of its machines knows its own")
    if kernel is not None and (row.platform is not None or row.name == "auto"):
        raise UsageError(f"kernel: backend {row.name} asks this machine for its kernel")
    return row.make(Given(rest=rest, kernel=kernel, netns=namespaces))


def checked(backend: Any, netns: Namespace | Sequence[Namespace] = None) -> Backend:
    """The backend for an argument of `Monitor`; a UsageError if it is neither a backend nor the name of one."""
    if netns is not None and (backend is None or isinstance(backend, str)):
        return named(backend or "auto", netns=netns)
    if netns is not None:
        raise UsageError("netns: give it to the backend itself, e.g. SockDiag(netns='all')")
    if backend is None:
        return auto()
    if isinstance(backend, str):
        return named(backend)
    if isinstance(backend, os.PathLike):  # which has a name and can be opened, too
        raise UsageError(f"backend: {backend!r} is a path; to play a recording: backends.Replay(path)")
    if isinstance(backend, type) or not callable(getattr(backend, "open", None)) or not hasattr(backend, "name"):
        hint = f"; make one: {backend.__name__}()" if isinstance(backend, type) and hasattr(backend, "open") else ""
        raise UsageError(f"backend: {backend!r} is neither a backend nor one of {choices()}{hint}")
    if callable(getattr(backend, "backend", None)):  # an emulated kernel, which has a name and opens flows
        raise UsageError(f"backend: {backend!r} is none itself; give what its method backend() makes")
    value: Backend = backend
    return value


def auto() -> Backend:
    """The backend of this machine.

    Raises:
        BackendUnavailableError: There is none for this operating system.
    """
    for row in ROWS:
        if row.platform is not None and is_here(row.platform):
            return row.make(Given(rest="", kernel=None, netns=()))
    detail = (
        f"no kernel interface is known for {system.system()}; an emulated kernel "
        "(nstat_async.testing.EmulatedKernel().backend()) and recordings (Replay) work everywhere"
    )
    raise BackendUnavailableError("auto", UnavailableReason.PLATFORM, detail)
