"""Paced polls: each request reports a hundred sources, and the next request continues after them."""

from __future__ import annotations

from collections.abc import Iterator

from nstat_async.ntstat import DarwinErrno, Error, HeaderFlag

from ._watcher import ClientSource, Watcher


class PacedPoll:
    """The one paced poll that a client can have (``nstat_client_begin_query``, ``…_end_query``)."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher
        self._version = watcher.release.version
        self._context = 0
        self._sequence = 0
        self._waiting: list[ClientSource] | None = None
        """Sources that the walk has not reached, newest last; `None`: the walk has not begun."""
        self._fresh: list[ClientSource] = []

    def begin(self, context: int, flags: int) -> bool:
        """Start or continue a paced poll; True if this request is one.

        A request with another context ends the stored poll, which is answered with EAGAIN.
        In xnu-3248 any request for reports does so, also one that is not paced.
        """
        if self._version < (3247,):
            return False
        paced = bool(flags & HeaderFlag.CONTINUATION)
        if (paced or self._version < (3789,)) and self._context != context:
            if self._context:
                error = Error(context=self._context, error=DarwinErrno.EAGAIN)
                self._watcher.enqueue(error.encode(self._watcher.machine.layout), critical=True)
                self._context = 0
            if paced:
                self._context = context
                self._sequence += 1
                self._waiting = None
        return paced

    def end(self) -> None:
        """The walk reached its end, or its poll is not paced."""
        self._context = 0
        self._waiting = None

    def source_added(self, source: ClientSource) -> None:
        """A source was added while the poll may be under way: it is at the head of the list."""
        if self._waiting is not None:
            self._fresh.append(source)

    def mark(self, source: ClientSource) -> None:
        """Note that a source was reported."""
        source.sequence = self._sequence

    def unreported(self) -> Iterator[ClientSource]:
        """The sources after those of the last chunk, newest first, without a look at every source again."""
        sequence, sources = self._sequence, self._watcher.sources
        waiting = list(sources.values()) if self._waiting is None else self._waiting + self._fresh
        self._fresh, self._waiting = [], waiting
        skipped: list[ClientSource] = []
        source = None
        try:
            while waiting:
                source = waiting.pop()
                if source.sequence == sequence or sources.get(source.srcref) is not source:
                    continue
                yield source
                if source.sequence != sequence:
                    skipped.append(source)
                source = None
        finally:
            # The chunk may have ended at a source that did not fit: the next chunk begins with it.
            if source is not None and source.sequence != sequence:
                skipped.append(source)
            waiting.extend(reversed(skipped))

    def is_last(self) -> bool:
        """True if a chunk that is full ends the walk.

        Since xnu-4570 the kernel tests the source at which it stopped, and not the next one. So if
        a chunk is full with the last source, another chunk is asked for, which is empty.
        """
        if self._version >= (4570,) or self._waiting is None:
            return False
        sources, sequence = self._watcher.sources, self._sequence
        return not any(s.sequence != sequence and sources.get(s.srcref) is s for s in self._waiting)
