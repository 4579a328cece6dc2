"""Finds entries of the map of flows whose sockets ended without a report.

Some ends are not reported. Packet sockets have no hook for their end. Without CAP_NET_ADMIN no datagram socket has one, and
sock_diag reports only the ends of TCP and UDP. The entry of an accepted connection stays if the kernel skipped the program
that would have removed it.

Such an entry is dropped if in two complete walks no process had the socket open, and it had no traffic meanwhile. No walk sees
a socket that is being passed between processes, or that only an io_uring holds: if its entry is dropped, its next use makes
another one.
"""

from __future__ import annotations

from ._records import Counters, FlowRow, SocketType

ABSENT = 2
"""After this many walks in a row without a socket its entry is dropped."""
_PACKET = 17
_STREAM = int(SocketType.STREAM)


class Sweep:
    """Compares what is counted with what processes have open.

    Args:
        ends: True if the programs see the ends of datagram sockets: then only packet sockets and TCP are compared.
    """

    def __init__(self, *, ends: bool) -> None:
        self._ends = ends
        self._suspects: dict[int, tuple[Counters, int]] = {}
        self._held: set[int] = set()

    def listed(self, row: FlowRow) -> None:
        """An entry of a list of counts."""
        if self._ends and row.type != _STREAM and row.family != _PACKET:
            return
        before = self._suspects.get(row.cookie)
        counters = row.counters
        if before is None or before[0] != counters:
            self._suspects[row.cookie] = (counters, 0)

    def held(self, cookie: int) -> None:
        """A process has this socket open."""
        self._held.add(cookie)

    def ended(self, cookie: int) -> None:
        """The end of this socket was reported after all."""
        self._suspects.pop(cookie, None)

    def end_walk(self, *, whole: bool) -> list[int]:
        """A walk over all descriptors is over.

        Args:
            whole: False if it ended early, so that it proves nothing.

        Returns:
            Cookies of the entries to drop.
        """
        held, self._held = self._held, set()
        if not whole:
            return []
        gone = []
        for cookie, (counters, absent) in list(self._suspects.items()):
            if cookie in held:
                self._suspects[cookie] = (counters, 0)
            elif absent + 1 < ABSENT:
                self._suspects[cookie] = (counters, absent + 1)
            else:
                del self._suspects[cookie]
                gone.append(cookie)
        return gone
