"""Names of remote addresses by reverse look-up: opt-in, never waited for on the loop, bounded.

A name server learns who is talked to, so nobody is asked without ``--names``. Whoever owns an address chooses its
name: escape it before printing.
"""

from __future__ import annotations

import queue
import socket
import threading
from collections import OrderedDict
from collections.abc import Callable

import attrs

_THREADS = 4
"""Look-ups at a time; one may take as long as the system's resolver likes."""
_WAITING = 512
"""Addresses that wait for one; more are asked for again when they are shown again."""
_REMEMBERED = 4096


def _look_up(address: str) -> str | None:
    try:
        return socket.gethostbyaddr(address)[0]
    except (OSError, UnicodeError):  # there is none, or nobody who knows
        return None


@attrs.define(eq=False)
class NameResolver:
    """Names by address, as far as they are known by now."""

    look_up: Callable[[str], str | None] = _look_up
    """Blocks; called in threads that do not keep the program from ending."""
    _known: OrderedDict[str, str | None] = attrs.field(factory=OrderedDict, init=False)
    _asked: set[str] = attrs.field(factory=set, init=False)
    _queue: queue.Queue[str] = attrs.field(factory=lambda: queue.Queue(_WAITING), init=False)
    _lock: threading.Condition = attrs.field(factory=threading.Condition, init=False)
    _threads: int = attrs.field(default=0, init=False)

    def name(self, address: str) -> str | None:
        """The name of an address; `None` while it is looked up, and where there is none."""
        with self._lock:
            if address in self._known:
                self._known.move_to_end(address)
                return self._known[address]
            if address not in self._asked and not self._queue.full():
                self._asked.add(address)
                self._queue.put_nowait(address)
                if self._threads < _THREADS:
                    self._threads += 1
                    threading.Thread(target=self._work, name="nstat-names", daemon=True).start()
        return None

    def wait(self, seconds: float) -> None:
        """Wait until everything that was asked for is known, or so long."""
        with self._lock:
            self._lock.wait_for(lambda: not self._asked, seconds)

    def _work(self) -> None:
        while True:
            address = self._queue.get()
            found = self.look_up(address)
            with self._lock:
                self._known[address] = found
                self._asked.discard(address)
                while len(self._known) > _REMEMBERED:
                    self._known.popitem(last=False)
                self._lock.notify_all()
