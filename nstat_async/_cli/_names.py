"""Names of remote addresses by reverse look-up, in threads and in limited number.

A name server learns which addresses are looked up, so there are no look-ups without ``--names``. The owner of an address
chooses its name: escape it before printing.
"""

from __future__ import annotations

import queue
import socket
import threading
from collections import OrderedDict
from collections.abc import Callable

import attrs

_THREADS = 4
"""Look-ups at a time; the system's resolver may take long for each."""
_WAITING = 512
"""Most addresses that wait for a look-up; further ones are requested when they are shown again."""
_REMEMBERED = 4096


def _look_up(address: str) -> str | None:
    try:
        return socket.gethostbyaddr(address)[0]
    except (OSError, UnicodeError):  # there is no name, or no server that knows it
        return None


@attrs.define(eq=False)
class NameResolver:
    """Names by address, as far as they are known."""

    look_up: Callable[[str], str | None] = _look_up
    """Looks up a name; it may block, and is called in daemon threads."""
    _known: OrderedDict[str, str | None] = attrs.field(factory=OrderedDict, init=False)
    _asked: set[str] = attrs.field(factory=set, init=False)
    _queue: queue.Queue[str] = attrs.field(factory=lambda: queue.Queue(_WAITING), init=False)
    _lock: threading.Condition = attrs.field(factory=threading.Condition, init=False)
    _threads: int = attrs.field(default=0, init=False)

    def name(self, address: str) -> str | None:
        """The name of an address; `None` during the look-up, and if there is no name."""
        with self._lock:
            if address in self._known:
                self._known.move_to_end(address)
                return self._known[address]
            if address not in self._asked and not self._queue.full():
                self._asked.add(address)
                self._queue.put_nowait(address)
                if self._threads < _THREADS:
                    self._start()
        return None

    def _start(self) -> None:
        """Start one more thread; where none can be started, what waits is asked for again when it is shown again."""
        try:
            threading.Thread(target=self._work, name="nstat-names", daemon=True).start()
            self._threads += 1
        except RuntimeError:
            if not self._threads:
                self._asked.clear()
                self._queue.queue.clear()

    def wait(self, seconds: float) -> None:
        """Wait until all look-ups are done, or for this many seconds."""
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
