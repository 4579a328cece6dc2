"""Whose sockets are worth a search: of which users the processes let us look at their descriptors, as it is measured."""

from __future__ import annotations

import os
from collections.abc import Callable

from .linux import may_look_at, user_of
from .tables import all_pids

TRIED = 16
"""Processes that are tried out, the newest ones of a user."""
MOST_PIDS = 1024
"""Processes among which those are: some milliseconds of work."""
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 64.0
"""Seconds for which nobody of a user let us look until it is tried again, at first and at last; and for which somebody did."""
MOST_USERS = 1024


class Reach:
    """Of which users sockets can be found. Capabilities do not say it, nor does the own user: see `process_visibility`.

    A socket's user is who made it, and may be another one than that of the process which has it: so behind each pause one
    search is made in any case, and what it finds counts.
    """

    def __init__(self, lets_look: Callable[[int], bool] | None = None) -> None:
        self._lets_look = lets_look or somebody_lets_look
        self._known: dict[int, tuple[bool, float, float]] = {}
        """Whether sockets of a user can be found, until when that holds, and the pause behind it."""

    def covers(self, uid: int, now: float) -> bool:
        """True if a socket of this user is worth a search."""
        if uid == os.geteuid():
            return True
        can, until, pause = self._known.get(uid, (False, now, FIRST_PAUSE))
        if now < until:
            return can
        if self._lets_look(uid):
            self.found(uid, now)
        else:
            self._learn(uid, (False, now + pause, min(LONGEST_PAUSE, 2 * pause)))
        return True

    def found(self, uid: int, now: float) -> None:
        """A process was found that has a socket of this user."""
        self._learn(uid, (True, now + LONGEST_PAUSE, FIRST_PAUSE))

    def _learn(self, uid: int, known: tuple[bool, float, float]) -> None:
        if len(self._known) >= MOST_USERS and uid not in self._known:
            self._known.clear()
        self._known[uid] = known


def somebody_lets_look(uid: int) -> bool:
    """True if a process of this user shows its descriptors; where it has none, any other's; where there are no others, as root is."""
    pids = all_pids()[:MOST_PIDS]
    users = {pid: user_of(pid) for pid in pids}
    theirs = [pid for pid in pids if users[pid] == uid]
    tried = (theirs or [pid for pid in pids if users[pid] not in {None, os.geteuid()}])[:TRIED]
    # One that is gone refuses nothing, and shows nothing.
    return any(may_look_at(pid) and user_of(pid) is not None for pid in tried) if tried else os.geteuid() == 0
