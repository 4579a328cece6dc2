"""Evidence of interfaces and addresses, from rtnetlink: a dump of links, one of addresses, then changes."""

from __future__ import annotations

import errno as errors
from typing import Any

from .._errors import ProtocolError
from ._constants import MessageType, RouteMessage
from ._host_requests import LinkKindsAnswer, LinkKindsRequest
from ._links import LinkTable
from ._messages import encode_route_dump, iterate_messages
from ._output import Output
from ._purposes import ChannelPurpose, Role
from ._refusals import refusal_text
from ._source import Source

PATIENCE = 1.0
"""Seconds after which polls begin even if the interfaces are not known."""
_LINKS, _ADDRESSES = 1, 2
"""Sequence numbers of the two dumps; messages about changes have 0."""


class AddressSource(Source):
    """Keeps a `LinkTable` up to date."""

    def __init__(self, output: Output, namespace: int, links: LinkTable) -> None:
        super().__init__(output, ChannelPurpose(namespace, Role.ROUTES))
        self._number = namespace
        self._links = links
        self._asked: frozenset[str] = frozenset()
        self._settled = output.following
        self._due: float | None = None

    @property
    def settled(self) -> bool:
        return self._settled

    def open(self) -> None:
        super().open()
        self._due = self.output.now + PATIENCE

    def opened(self, receive_buffer: int | None) -> None:
        super().opened(receive_buffer)
        self._list_everything()

    def _list_everything(self) -> None:
        self._links.begin_dump()
        self.send(encode_route_dump(RouteMessage.GETLINK, _LINKS))

    def _settle(self) -> None:
        self._settled = True
        self._due = None

    def failed(self, errno: int) -> None:
        """List everything again after an overrun; after any other failure keep what is known of the interfaces."""
        if errno == errors.ENOBUFS and self.is_open:
            self._list_everything()
        else:
            self.output.note(f"interfaces are unknown: rtnetlink failed: {refusal_text(errno)}")
            self.close()
            self._settle()

    def deadline(self) -> float | None:
        return self._due

    def expire(self) -> None:
        self._settle()

    def receive(self, data: bytes) -> None:
        for frame in iterate_messages(data):
            if frame.type in {MessageType.DONE, MessageType.ERROR}:
                self._end_of_dump(frame.sequence, complete=frame.type == MessageType.DONE)
                continue
            try:
                self._links.apply(frame.type, data, frame)
            except ProtocolError as error:
                self.output.reject(str(error))
            if frame.sequence == 0:
                self._ask_kinds()

    def _end_of_dump(self, sequence: int, *, complete: bool) -> None:
        if sequence == _LINKS:
            self.send(encode_route_dump(RouteMessage.GETADDR, _ADDRESSES))
        elif sequence == _ADDRESSES:
            if complete:
                self._links.end_dump()
            self._ask_kinds()
            self._settle()

    def _ask_kinds(self) -> None:
        names = frozenset(self._links.unclassified())
        if names - self._asked:
            self.output.ask(LinkKindsRequest(self._number, tuple(sorted(names))), self.take_kinds)
        self._asked = names

    def take_kinds(self, answer: Any) -> None:
        """Take in what the host says about kinds of devices."""
        if isinstance(answer, LinkKindsAnswer):
            self._links.classify(answer)
