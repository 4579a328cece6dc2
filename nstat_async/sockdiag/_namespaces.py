"""Evidence of network namespaces: which ones came, and which ones are gone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs

from ._host_requests import FoundNamespace, NamespacesAnswer, NamespacesRequest
from ._output import Output
from ._program_namespaces import ProgramNamespaces
from ._setup import needed_to_look

REMEMBERED = 1024
"""Most namespaces that are remembered because records named them and no search found them."""
ROUNDS = 2
"""Whole rounds without a namespace after which it is watched from outside: the first may have begun before its record."""


MOST_LOOKS = 32
"""Most immediate searches for one of them: with many processes a round takes several."""


@attrs.define
class _Unwatched:
    """A namespace that a record named."""

    inode: int
    looks: int = 0
    """Searches since then."""
    rounds: int = 0
    """Whole rounds since then."""


class NamespaceSource:
    """Searches for namespaces at each poll.

    Args:
        output: Takes the requests.
        add: Called with each namespace that was found.
        drop: Called with the number of each one that is gone.
        place: Called with the cgroups of namespaces that are watched from outside, by number, if all processes are in one.
        program_namespaces: The namespaces that cannot be found or entered.
        asks: Search for namespaces.
        closed: None of them can be entered, so nothing waits for a search.
    """

    def __init__(
        self,
        output: Output,
        add: Callable[[FoundNamespace], None],
        drop: Callable[[int], None],
        place: Callable[[Mapping[int, int]], None],
        program_namespaces: ProgramNamespaces,
        *,
        asks: bool,
        closed: bool,
    ) -> None:
        self._output = output
        self._add = add
        self._drop = drop
        self._place = place
        self._program_namespaces = program_namespaces
        self._asks = asks
        self._closed = closed
        self.settled = not asks
        """True when it is known which namespaces exist."""
        self._asking = self._again = False
        self._outside = self._looked_outside = False
        self._unwatched: dict[int, _Unwatched] = {}
        """Namespaces that a record named and that are not watched, by cookie."""
        self._released: list[int] = []
        self._last = NamespacesAnswer()

    def ask(self) -> None:
        """Begin a search, unless one is running."""
        if self._asks and not self._asking:
            self._asking = True
            released, self._released = tuple(self._released), []
            self._looked_outside = self._outside
            self._output.ask(NamespacesRequest(released, self._outside), self.take)

    def watch_outside(self) -> None:
        """Watch namespaces that cannot be entered by their tables: no eBPF programs report their sockets."""
        if self._asks:
            self._outside, self.settled, self._again = True, False, self._asking
            self.ask()

    def meet(self, cookie: int, inode: int) -> bool:
        """A record named a namespace that is not watched: search at once, if it may be a new one.

        Returns:
            True if it may be watched soon, but is not yet.
        """
        if self._closed and inode:
            self._program_namespaces.meet(cookie, self._label(cookie, inode))
            return False
        namespace = self._unwatched.get(cookie)
        if namespace is not None:
            namespace.inode = namespace.inode or inode
        elif self._asks:
            if len(self._unwatched) >= REMEMBERED:
                del self._unwatched[next(iter(self._unwatched))]
            self._unwatched[cookie] = _Unwatched(inode)
            self.ask()
        return self._asks

    def take(self, answer: Any) -> None:
        """Take in the namespaces that came and went."""
        self._asking, self.settled = False, self._looked_outside is self._outside
        if isinstance(answer, NamespacesAnswer):
            self._learn(answer)
        if self._again:
            self._again = False
            self.ask()

    def _learn(self, answer: NamespacesAnswer) -> None:
        self._last = answer
        for found in answer.found:
            if found.cookie is not None:
                self._unwatched.pop(found.cookie, None)
                self._program_namespaces.entered(found.cookie)
            self._add(found)
        for number in answer.gone:
            self.release(number)
        if answer.whole:
            self._place(dict(answer.cgroups))
        self._watch_from_outside(answer)
        self._program_namespaces.sweep()

    def _watch_from_outside(self, answer: NamespacesAnswer) -> None:
        """Watch from outside the namespaces that records named and the search did not find, or could not enter."""
        labels = {inode for inode, _ in answer.names}
        for cookie, namespace in list(self._unwatched.items()):
            namespace.looks += 1
            namespace.rounds += answer.whole
            if namespace.rounds >= ROUNDS or namespace.inode in labels:
                if self._program_namespaces.meet(cookie, self._label(cookie, namespace.inode)):
                    del self._unwatched[cookie]
            elif namespace.looks < MOST_LOOKS:
                self._again = True

    def _label(self, cookie: int, inode: int) -> str:
        """The label of a namespace if it has one, else its inode as ``/proc/PID/ns`` shows it."""
        return dict(self._last.names).get(inode) or (f"net:[{inode}]" if inode else f"net:{cookie}")

    def release(self, number: int) -> None:
        """Forget a namespace that is no longer watched."""
        self._drop(number)
        self._released.append(number)

    def remarks(self, *, seen: bool) -> list[str]:
        """Tell a person which namespaces are not watched.

        Args:
            seen: True if eBPF programs report all namespaces.
        """
        last, found = self._last, []
        only = ": what eBPF programs see of them is all there is, without interfaces and, until its end, the counts of a TCP flow"
        if last.outside:
            found.append(
                f"{last.outside} network namespaces are watched from outside, by the tables in /proc/PID/net: these have neither bytes nor round trips,"
                " nor flows that begin and end between two readings; entering needs CAP_SYS_ADMIN in their user namespace"
            )
        if last.veiled and not seen:
            found.append("the network namespaces of other users' processes cannot be seen: /proc hides them (hidepid=)")
        if last.closed:
            needs = "that needs CAP_SYS_ADMIN in their user namespace"
            found.append(f"{last.closed} network namespaces cannot be entered" + (only if seen else f": {needs}"))
        if last.beyond:
            entered = "entered" if seen else "watched"
            limit = "the limit of open files (ulimit -n, LimitNOFILE=) allows" if last.by_descriptors else "the most is"
            found.append(f"{last.beyond} network namespaces are not {entered}: {limit} {last.most or 'fewer'}")
        if last.hidden:
            whose = f"{last.hidden} process{'es' if last.hidden > 1 else ''}"
            found.append(f"the network namespaces of {whose} cannot be seen: {needed_to_look('CAP_SYS_PTRACE')}")
        return found
