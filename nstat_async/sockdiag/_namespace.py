"""One network namespace: its book, and the sources that speak of it.

Four channels, opened in this order so that nothing falls between them: removals
first, then addresses, look-ups and dumps.
"""

from __future__ import annotations

from collections.abc import Iterable

from ._absences import Absences
from ._addresses import AddressSource
from ._book import Book
from ._dumps import DumpSource
from ._links import LinkTable
from ._lookups import LookupSource
from ._output import Output
from ._owners import OwnerSource
from ._purpose import NetworkNamespace
from ._removals import RemovalSource
from ._rows import RowFormats
from ._source import Source


class Namespace:
    """A network namespace under observation."""

    def __init__(
        self,
        output: Output,
        number: int,
        identity: NetworkNamespace,
        owners: OwnerSource,
        protocols: Iterable[int],
        *,
        every_update: bool = False,
        extras: bool = False,
    ) -> None:
        protocols = frozenset(protocols)
        links, formats = LinkTable(), RowFormats()
        self.identity = identity
        self.book = Book(output, number, identity, links, owners, every_update=every_update)
        self.addresses = AddressSource(output, number, links)
        self.lookups = LookupSource(output, number)
        self.removals = RemovalSource(output, self.book, self.lookups, formats, protocols)
        self.absences = Absences(output, self.book, self.lookups, self.removals, formats)
        self.dumps = DumpSource(output, self.book, formats, protocols, extras=extras, every=every_update)
        self.sources: tuple[Source, ...] = (self.removals, self.addresses, self.lookups, self.dumps)
        """In the order in which their channels are opened."""
        self._judged = True

    @property
    def settled(self) -> bool:
        """True when polls can begin."""
        return all(source.settled for source in self.sources)

    def begin_poll(self) -> None:
        """Dump everything."""
        self._judged = False
        self.book.begin_poll()
        self.removals.begin_poll()
        self.dumps.begin_poll()

    def gather(self) -> bool:
        """Look into absences once all dumps are in; True when each was."""
        if not self._judged and self.dumps.done:
            self._judged = True
            self.book.end_dumps()
            self.absences.judge(self.dumps.judged)
        return self._judged and not self.absences.asking

    def end_poll(self) -> None:
        """Everything that this poll found is in the book."""
        if self.dumps.complete:
            self.removals.end_poll()
        self.book.locate()
