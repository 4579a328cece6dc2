"""Finds out whose sockets are worth a search: the users whose processes let us see their descriptors."""

from __future__ import annotations

import os
from collections.abc import Callable

from .linux import may_look_at, user_of
from .tables import all_pids

TRIED = 16
"""How many of a user's newest processes are tried."""
MOST_PIDS = 1024
"""Most processes among which those are searched for: some milliseconds of work."""
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 64.0
"""Seconds until a user whose processes refused is tried again: at first, and at most. A success holds as long."""
MOST_USERS = 1024


class Reach:
    """The users whose sockets can be found. Neither capabilities nor our own user tell it: see `process_visibility`.

    A socket's user is the user who made it, and the process that has it may be another user's. So after each pause one
    search is always made, and its result counts.
    """

    def __init__(self, sees: Callable[[int], bool] | None = None) -> None:
        self._sees = sees or sees_processes_of
        self._known: dict[int, tuple[bool, float, float]] = {}
        """For each user: whether sockets can be found, until when that holds, and the pause after it."""

    def covers(self, uid: int, now: float) -> bool:
        """True if a socket of this user is worth a search."""
        if uid == os.geteuid():
            return True
        can, until, pause = self._known.get(uid, (False, now, FIRST_PAUSE))
        if now < until:
            return can
        if self._sees(uid):
            self.found(uid, now)
        else:
            self._learn(uid, (False, now + pause, min(LONGEST_PAUSE, 2 * pause)))
        return True

    def found(self, uid: int, now: float) -> None:
        """Note that a process with a socket of this user was found."""
        self._learn(uid, (True, now + LONGEST_PAUSE, FIRST_PAUSE))

    def _learn(self, uid: int, known: tuple[bool, float, float]) -> None:
        if len(self._known) >= MOST_USERS and uid not in self._known:
            self._known.clear()
        self._known[uid] = known


def sees_processes_of(uid: int) -> bool:
    """True if we see the descriptors of a process of this user.

    If the user has no process, those of any other user are tried. If there are none either, the answer is whether we are root.
    """
    pids = all_pids()[:MOST_PIDS]
    users = {pid: user_of(pid) for pid in pids}
    theirs = [pid for pid in pids if users[pid] == uid]
    tried = (theirs or [pid for pid in pids if users[pid] not in {None, os.geteuid()}])[:TRIED]
    # A process that is gone refuses nothing, and shows nothing.
    return any(may_look_at(pid) and user_of(pid) is not None for pid in tried) if tried else os.geteuid() == 0
