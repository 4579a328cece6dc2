"""Evidence of network namespaces: which ones came, and which ones nobody is in any more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ._output import Output
from ._setup import FoundNamespace, NamespacesAnswer, NamespacesRequest

REMEMBERED = 1024
"""Namespaces of which it is known that they are not watched."""


class NamespaceSource:
    """Looks for namespaces at each poll.

    Args:
        output: Where questions go.
        add: Called with a namespace that was found.
        drop: Called with the number of one that is gone.
        asks: Whether namespaces are looked for.
    """

    def __init__(
        self, output: Output, add: Callable[[FoundNamespace], None], drop: Callable[[int], None], *, asks: bool
    ) -> None:
        self._output = output
        self._add = add
        self._drop = drop
        self._asks = asks
        self.settled = not asks
        """True when it is known which ones there are."""
        self._asking = self._again = False
        self._met: set[int] = set()
        """Cookies of namespaces that were not watched when a record came."""
        self._released: list[int] = []
        self._last = NamespacesAnswer()

    def ask(self) -> None:
        """Have a look, unless one is under way."""
        if self._asks and not self._asking:
            self._asking = True
            released, self._released = tuple(self._released), []
            self._output.ask(NamespacesRequest(released), self.take)

    def meet(self, cookie: int) -> bool:
        """A record is of a namespace that is not watched: look at once, if it may be a new one.

        Returns:
            Whether it may be watched soon.
        """
        if self._asks and cookie not in self._met:
            if len(self._met) >= REMEMBERED:
                self._met.clear()
            self._met.add(cookie)
            self._again = self._asking
            self.ask()
        return self._asks

    def take(self, answer: Any) -> None:
        """Take in what came and went."""
        self._asking, self.settled = False, True
        if not isinstance(answer, NamespacesAnswer):
            return
        self._last = answer
        for found in answer.found:
            self._add(found)
        for number in answer.gone:
            self.release(number)
        if self._again:
            self._again = False
            self.ask()

    def release(self, number: int) -> None:
        """A namespace is not watched any more."""
        self._drop(number)
        self._released.append(number)

    def remarks(self) -> list[str]:
        """What is not watched, for a person."""
        last, found = self._last, []
        if last.closed:
            found.append(
                f"{last.closed} network namespaces cannot be entered: that needs CAP_SYS_ADMIN in their user namespace"
            )
        if last.beyond:
            limit = "the limit of open files (ulimit -n, LimitNOFILE=) allows" if last.by_descriptors else "the most is"
            found.append(f"{last.beyond} network namespaces are not watched: {limit} {last.most or 'fewer'}")
        if last.hidden:
            found.append("the network namespaces of some processes cannot be seen: that needs CAP_SYS_PTRACE")
        return found
