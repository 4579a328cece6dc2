"""The rtnetlink conversation of one namespace: links, then addresses, then changes as they come."""

from __future__ import annotations

from .._contract import Lookup, Send
from .._errors import ProtocolError
from ._constants import MessageType, RouteMessage
from ._hub import Hub
from ._links import LinkKindsRequest, LinkTable
from ._messages import encode_route_dump, iterate_messages

__all__ = ["RouteReader"]

_LINKS, _ADDRESSES = 1, 2
"""Sequence numbers of the two dumps; changes come with 0."""


class RouteReader:
    """Keeps a `LinkTable` true."""

    def __init__(self, hub: Hub, links: LinkTable, channel: int, namespace: int) -> None:
        self.channel = channel
        self.settled = hub.passive
        """True when interfaces are known, or known not to become known."""
        self.failed = False
        self._hub = hub
        self._links = links
        self._namespace = namespace
        self._asked: frozenset[str] = frozenset()

    def begin(self) -> None:
        """Ask for all links and addresses."""
        self._hub.commands.append(Send(self.channel, encode_route_dump(RouteMessage.GETLINK, _LINKS)))

    def give_up(self, *, failed: bool = True) -> None:
        """Go on without (more) knowledge of interfaces."""
        self.settled = True
        self.failed = self.failed or failed

    def receive(self, data: bytes) -> None:
        """Take in a datagram.

        Raises:
            ProtocolError: A message that cannot be decoded.
        """
        for frame in iterate_messages(data):
            if frame.type in {MessageType.DONE, MessageType.ERROR}:
                self._end_of_dump(frame.sequence)
            else:
                try:
                    self._links.apply(frame.type, data, frame)
                except ProtocolError as error:
                    self._hub.reject(str(error))
                if frame.sequence == 0:
                    self._classify()

    def _end_of_dump(self, sequence: int) -> None:
        if sequence == _LINKS:
            self._hub.commands.append(Send(self.channel, encode_route_dump(RouteMessage.GETADDR, _ADDRESSES)))
        elif sequence == _ADDRESSES:
            self._classify()
            self.settled = True

    def _classify(self) -> None:
        names = frozenset(self._links.unclassified())
        if names - self._asked:
            self._asked = names
            token = self._hub.next_token()
            self._hub.commands.append(Lookup(token, LinkKindsRequest(self._namespace, tuple(sorted(names)))))
