"""Polls: when one begins, and what it goes through.

A poll gathers (every namespace dumps its sockets, absences are looked into), searches for the
processes of new sockets and announces them, and is complete:

    SETUP ──▶ GATHERING ──▶ ANNOUNCING ──▶ IDLE ──▶ GATHERING …

Whatever waits ends by itself or by its deadline. A new flow is announced when its process is found,
or known not to be found soon, so that `FlowAdded` has it; one that ends before is announced then.
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
"""Smallest time in seconds between the begin of two polls that nobody's interval asked for."""
OWNERS_PATIENCE = 0.25
"""Seconds that new flows wait for their process."""
FIRST_OWNERS_PATIENCE = 3.0
"""The same in the first poll, which finds all sockets of the machine."""
ASKED_OWNERS_PATIENCE = 30.0
"""The same where every poll is one that was asked for: no later one may have the processes."""
ANNOUNCED_AT_ONCE = 240
"""Flows announced in one step, about 1 ms, and delivered, which takes 2 to 3; as many owners are learned before it in the same turn."""


class _Stage(enum.Enum):
    SETUP = enum.auto()
    GATHERING = enum.auto()
    ANNOUNCING = enum.auto()
    IDLE = enum.auto()


class Polls:
    """The polls of a session, one after the other.

    Args:
        output: The time, and where what is said goes.
        namespaces: What is polled.
        searches: What is searched for at the end of each.
        spaces: Looks for other namespaces, beside each.
        programs: Asked for counts in each.
        interval: Seconds between the begin of two polls; `None`: only when wanted.
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
        """When the next poll begins, unless one is under way then."""
        self._wanted = False
        """Another poll is wanted as soon as the one under way is over."""
        self._patience_ends = 0.0
        self._fresh = True
        """A namespace is looked at for the first time."""

    # -- when

    def request(self) -> int:
        """Have a poll begin as soon as possible; its serial."""
        serial = self._output.poll + 1
        if self._stage is not _Stage.IDLE:
            self._wanted = True
        elif not self._output.following:
            self._begin(serial)
        return serial

    def _repair(self) -> None:
        """Something was lost: a poll is wanted soon. A recorded client asked for its repair itself."""
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
        """The time may have come."""
        if self._stage is _Stage.IDLE and self._due is not None and self._due <= self._output.now:
            self._begin(self._output.poll + 1)

    # -- what

    def proceed(self) -> None:
        """Go on as far as possible without waiting."""
        if self._output.repair_wanted:
            self._repair()
        if self._stage is _Stage.SETUP and self.settled:
            self._begin(1)
        if self._stage is _Stage.GATHERING and self._gathered:
            self._search()
        if self._stage is _Stage.ANNOUNCING:
            self._announce()
        if self._stage is _Stage.IDLE and self._news:
            self._repair()
        elif self._stage is not _Stage.GATHERING:
            self._cgroups.ask()

    @property
    def _news(self) -> bool:
        """True if a namespace came that no poll has looked at yet."""
        return any(not namespace.polled and namespace.settled for namespace in self._namespaces)

    @property
    def settled(self) -> bool:
        """True when it is known what is watched, and its channels are open or given up."""
        known = self._programs.settled and self._spaces.settled
        return known and all(namespace.settled or namespace.dumps.lost for namespace in self._namespaces)

    @property
    def _gathered(self) -> bool:
        gathered = True
        for namespace in self._namespaces:
            gathered &= namespace.gather()  # each must look into its absences
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
        """The book is up to date but for the owners of new sockets."""
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
        """True when new flows need not wait for their cgroup any longer, nor what was there before for names."""
        named = not (self._fresh and self._owners.naming)
        return (named and not self._cgroups.searching) or self._output.now >= self._patience_ends

    @property
    def _searched(self) -> bool:
        """True when new flows need not wait for their process any longer."""
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
        if not (self._output.busy or any(namespace.book.unannounced for namespace in self._namespaces)):
            self._end()

    def _end(self) -> None:
        output = self._output
        complete = all(namespace.dumps.complete for namespace in self._namespaces)
        flows = sum(len(namespace.book.entries) for namespace in self._namespaces)
        output.events.append(PollCompleted(output.time, flows, complete, output.poll))
        if self._interval is not None or not output.first_poll:  # whoever takes a single look sees no connection end
            self._owners.count()
        output.first_poll = False
        self._stage = _Stage.IDLE
        if self._wanted:
            self._due = self._soon()
        elif self._due is not None and self._due <= output.now and self._interval is not None:
            self._due += ((output.now - self._due) // self._interval + 1) * self._interval  # begins that were missed

    # -- following a recording

    def follow(self, serial: int) -> None:
        """The recorded client asked for a dump of this poll."""
        if self._stage is not _Stage.GATHERING or serial != self._output.poll:
            self.finish()
            self._begin(serial)

    def finish(self) -> None:
        """What the poll under way still expects, or asks for while it ends, will not come."""
        while self._stage is not _Stage.IDLE:
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
