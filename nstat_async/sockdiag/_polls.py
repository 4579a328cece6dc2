"""The polls of a session: when one begins, and its stages.

A poll gathers (every namespace dumps its sockets and examines absences), searches for the
processes of new sockets, announces these, and is complete:

    SETUP ──▶ GATHERING ──▶ ANNOUNCING ──▶ IDLE ──▶ GATHERING …

Each stage ends on its own or by its deadline. A new flow is announced when its process is found, so that
`FlowAdded` has it, or when it will not be found soon; a flow that ends before is announced at its end.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

from .._errors import BackendUnavailableError, UnavailableReason
from .._events import PollCompleted
from ._cgroups import CgroupSource
from ._namespace import Namespace
from ._namespaces import NamespaceSource
from ._output import Output
from ._owners import OwnerSource
from ._programs import Programs

REPAIR_PAUSE = 0.2
"""Least seconds between the starts of two polls outside the interval."""
OWNERS_PATIENCE = 0.25
"""Seconds that new flows wait for their process."""
FIRST_OWNERS_PATIENCE = 3.0
"""As `OWNERS_PATIENCE`, in the first poll, which finds all sockets of the machine."""
ASKED_OWNERS_PATIENCE = 30.0
"""As `OWNERS_PATIENCE`, without an interval: there may be no later poll that could tell the processes."""
ANNOUNCED_AT_ONCE = 240
"""Flows that are announced in one step: about 1 ms, and 2 or 3 for the delivery. As many owners are learned before it."""


class _Stage(enum.Enum):
    SETUP = enum.auto()
    GATHERING = enum.auto()
    ANNOUNCING = enum.auto()
    IDLE = enum.auto()


class Polls:
    """Does the polls of a session, one after the other.

    Args:
        output: Has the time; takes events and requests.
        namespaces: The namespaces to poll.
        searches: The searches at the end of each poll.
        spaces: Searches for other namespaces during each poll.
        programs: Is asked for counts in each poll.
        interval: Seconds between the starts of two polls; `None`: only when requested.
    """

    def __init__(
        self,
        output: Output,
        namespaces: Sequence[Namespace],
        searches: tuple[OwnerSource, CgroupSource],
        spaces: NamespaceSource,
        programs: Programs,
        interval: float | None,
    ) -> None:
        self._output = output
        self._namespaces = namespaces
        self._owners, self._cgroups = searches
        self._spaces = spaces
        self._programs = programs
        self._interval = None if output.following else interval
        self._stage = _Stage.IDLE if output.following else _Stage.SETUP
        self._due: float | None = None
        """When the next poll begins, unless the present one still runs then."""
        self._wanted = False
        """True if another poll is wanted after the present one."""
        self._patience_ends = 0.0
        self._fresh = True
        """True if the present poll is the first one of a namespace."""

    # -- when

    def request(self) -> int:
        """Have a poll begin as soon as possible; returns its serial."""
        serial = self._output.poll + 1
        if self._stage is not _Stage.IDLE:
            self._wanted = True
        elif not self._output.following:
            self._begin(serial)
        return serial

    def _repair(self) -> None:
        """Schedule a poll soon, because something was lost. A recorded client requested it itself."""
        self._output.repair_wanted = False
        if self._output.following:
            return
        if self._stage is not _Stage.IDLE:
            self._wanted = True
        else:
            self._due = self._soon() if self._due is None else min(self._due, self._soon())

    def _soon(self) -> float:
        return max(self._output.now, self._output.poll_began + REPAIR_PAUSE)

    def deadline(self) -> float | None:
        """When to call `expire`."""
        if self._stage is _Stage.IDLE:
            return self._due
        if self._stage is _Stage.ANNOUNCING:
            return self._output.now if self._announceable else self._patience_ends
        if any(namespace.judging for namespace in self._namespaces):
            return self._output.now
        return None

    def expire(self) -> None:
        """Do what is due, if the deadline has come."""
        if self._stage is _Stage.IDLE and self._due is not None and self._due <= self._output.now:
            self._begin(self._output.poll + 1)

    # -- what

    def proceed(self) -> None:
        """Continue as far as possible without waiting."""
        if self._stage is _Stage.SETUP and self.settled:
            self._begin(1)
        if self._stage is _Stage.GATHERING and self._gathered:
            self._search()
        if self._stage is _Stage.ANNOUNCING:
            self._announce()
        if self._output.repair_wanted or (self._stage is _Stage.IDLE and self._news):
            self._repair()
        if self._stage is not _Stage.GATHERING:
            self._cgroups.ask()

    @property
    def _news(self) -> bool:
        """True if there is a namespace that no poll has looked at yet."""
        return any(not namespace.polled and namespace.settled for namespace in self._namespaces)

    @property
    def settled(self) -> bool:
        """True when it is known which namespaces are watched, and their channels are open or given up."""
        known = self._programs.settled and self._spaces.settled
        return known and all(namespace.settled or namespace.dumps.lost for namespace in self._namespaces)

    @property
    def _gathered(self) -> bool:
        gathered = True
        for namespace in self._namespaces:
            gathered &= namespace.gather()  # not `all`: each must examine its absences
        return gathered and self._programs.gathered

    def _begin(self, serial: int) -> None:
        output = self._output
        output.poll = serial
        output.poll_began, self._wanted = output.now, False
        self._due = None if self._interval is None else output.now + self._interval
        self._stage = _Stage.GATHERING
        self._fresh = any(not namespace.polled for namespace in self._namespaces)
        self._programs.begin_poll()
        for number in [namespace.number for namespace in self._namespaces if namespace.dumps.lost]:
            self._spaces.release(number)
        for namespace in self._namespaces:
            if namespace.settled:
                namespace.begin_poll()
        self._spaces.ask()
        if all(namespace.dumps.all_refused for namespace in self._namespaces):
            detail = "the kernel has no inet_diag (CONFIG_INET_DIAG)"
            output.failure = BackendUnavailableError("sock_diag", UnavailableReason.MISSING, detail)

    def _search(self) -> None:
        """Begin the searches: the books are up to date except for the owners of new sockets."""
        for namespace in self._namespaces:
            namespace.end_poll()
        self._programs.settle()
        self._owners.search()
        self._cgroups.ask()
        patience = FIRST_OWNERS_PATIENCE if self._output.first_poll else OWNERS_PATIENCE
        if self._interval is None and not self._output.following:
            patience = ASKED_OWNERS_PATIENCE
        self._patience_ends = self._output.now + patience
        self._stage = _Stage.ANNOUNCING

    @property
    def _placed(self) -> bool:
        """True when new flows need not wait longer for their cgroups, nor the flows of the first poll for names."""
        named = not (self._fresh and self._owners.naming)
        return (named and not self._cgroups.searching) or self._output.now >= self._patience_ends

    @property
    def _searched(self) -> bool:
        """True when new flows need not wait longer for their processes."""
        return not self._owners.searching or self._output.now >= self._patience_ends

    @property
    def _announceable(self) -> bool:
        searched = self._searched
        return self._placed and any(ns.book.ready or (ns.book.waiting and searched) for ns in self._namespaces)

    def _announce(self) -> None:
        if not self._placed:
            return
        left = ANNOUNCED_AT_ONCE
        for namespace in self._namespaces:
            left -= namespace.book.announce_next(left, searched=self._searched)
        unannounced = any(namespace.book.unannounced for namespace in self._namespaces)
        if not (self._output.busy or unannounced or self._undecided):
            self._end()

    @property
    def _undecided(self) -> bool:
        """True while a poll without an interval waits for the reason why the processes of flows that it announced are not known."""
        return self._interval is None and not self._searched and self._owners.undecided > 0

    def _end(self) -> None:
        output = self._output
        complete = all(namespace.dumps.complete for namespace in self._namespaces)
        flows = sum(len(namespace.book.entries) for namespace in self._namespaces)
        output.events.append(PollCompleted(output.time, flows, complete, output.poll))
        if self._interval is not None or not output.first_poll:  # a single snapshot sees no connection end
            self._owners.count()
        output.first_poll = False
        self._stage = _Stage.IDLE
        if self._wanted:
            self._due = self._soon()
        elif self._due is not None and self._due <= output.now and self._interval is not None:
            self._due += ((output.now - self._due) // self._interval + 1) * self._interval  # skips missed starts

    # -- following a recording

    def follow(self, serial: int) -> None:
        """The recorded client asked for a dump of this poll."""
        if self._stage is not _Stage.GATHERING or serial != self._output.poll:
            self.finish()
            self._begin(serial)

    def finish(self) -> None:
        """End the present poll: nothing that it expects, or requests while it ends, will come."""
        while self._stage is not _Stage.IDLE:
            self._patience_ends = self._output.now  # time stands still here: whatever flows wait for, the wait is over
            self._owners.give_up()
            self._cgroups.give_up()
            for namespace in self._namespaces:
                if not namespace.dumps.done:
                    namespace.dumps.abort()
                namespace.walks.give_up()
                namespace.lookups.give_up_all()
                namespace.tables.take(None)
            self._programs.maps.expire()
            while self._output.busy:
                self._output.work()
            self.proceed()
