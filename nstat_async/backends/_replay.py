"""The backend ``replay:FILE``: a recording."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, BinaryIO, ClassVar, Union

import attrs

from .._checks import check_path, check_timebase, positive
from .._contract import Feed
from .._errors import UsageError
from .._options import MonitorOptions, refuse_ebpf
from ._kernels import check_kernel


def _sources(_instance: object, _attribute: Any, value: Any) -> None:
    sources = value if isinstance(value, (list, tuple)) else (value,)
    if not sources:
        raise UsageError("recording: no file is given")
    for source in sources:
        check_path("recording", source, "rb")


@attrs.frozen
class Replay:
    """A recording of either protocol, in any of the formats of `nstat_async.recording`."""

    name: ClassVar[str] = "replay"
    source: Union[str, os.PathLike[str], BinaryIO, Sequence[Union[str, os.PathLike[str], BinaryIO]]] = attrs.field(
        validator=_sources
    )
    """A path, ``"-"`` for standard input, or an open binary file; or several, the parts of one recording in order."""
    kernel: str | None = attrs.field(default=None, validator=check_kernel)
    """The kernel's version, for recordings that do not carry it."""
    speed: float | None = attrs.field(default=None, validator=positive(optional=True))
    """1 plays as recorded; `None` as fast as possible."""
    timebase: tuple[int, int] | None = attrs.field(default=None, validator=check_timebase)
    """The kernel's timebase, for recordings that do not carry it."""

    def open(self, options: MonitorOptions) -> Feed:
        """Open it.

        Raises:
            RecordingError: The file cannot be opened, is not a recording, or its kernel is not known.
            UsageError: The replay is to be recorded, or eBPF is required, which a recording cannot add.
        """
        self._check(options)
        from .._io.replay import ReplayFeed  # noqa: PLC0415  # with both protocols, which others do without

        return ReplayFeed(self.source, options, kernel=self.kernel, speed=self.speed, timebase=self.timebase)

    async def open_outside(self, options: MonitorOptions) -> Feed:
        """As `open`, but it waits for the start of a pipe outside the event loop."""
        self._check(options)
        from .._io.replay import open_outside  # noqa: PLC0415  # as above

        return await open_outside(self.source, options, kernel=self.kernel, speed=self.speed, timebase=self.timebase)

    def _check(self, options: MonitorOptions) -> None:
        refuse_ebpf(options, self.name)
        if options.record_to is not None:
            raise UsageError("record_to: a recording cannot be recorded again; nstat_async.recording.copy copies it")
