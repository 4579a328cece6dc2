"""Look-ups of single sockets: does this socket exist, or what is left of it?

A look-up is one request and one answer, on a channel that only look-ups use (about 5 µs of the
kernel's time). Requests wait their turn, so that the answers always fit the receive buffer.
`expire` gives up an answer that does not come.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable

from ._constants import IPPROTO_TCP, IPPROTO_UDP, NO_COOKIE, SOCK_DIAG_BY_FAMILY, DiagAttribute, MessageType
from ._messages import ATTRIBUTES_AT, COOKIE_AT, SOCKET_ID_AT, DiagRequest, extension_bits, iterate_messages
from ._output import Output
from ._purposes import ChannelPurpose, Role
from ._refusals import is_refusal
from ._source import Source

BATCH = 64
"""Requests in one datagram to the kernel."""
MAX_OUTSTANDING = 128
"""Most answers that may wait in the receive buffer: as many fit the smallest default."""
MOST_WAITING = 65_536
"""Most look-ups that wait their turn: further ones get no answer."""
PATIENCE = 1.0
"""Seconds until an answer is given up; the kernel answers while the request is sent."""

NO_ANSWER = b""
"""Stands for an answer that did not come, which proves nothing."""

Done = Callable[["bytes | None"], None]
"""Gets the socket's message; `None`: there is no such socket; or `NO_ANSWER`."""

_EXTENSIONS = extension_bits(DiagAttribute.INFO, DiagAttribute.CONG)


def lookup_request(message: bytes, protocol: int, *, exact: bool = True, mirrored: bool = False) -> DiagRequest:
    """The request for the socket of a message.

    Args:
        message: A reply or notification.
        protocol: TCP or UDP.
        exact: Ask for the socket with its cookie; otherwise for any socket with its addresses.
        mirrored: Ask for the other end.
    """
    identity = message[SOCKET_ID_AT:COOKIE_AT]
    if mirrored or protocol == IPPROTO_UDP:
        # udp_dump_one looks for the packet that would arrive: ends are exchanged.
        identity = identity[2:4] + identity[:2] + identity[20:36] + identity[4:20] + identity[36:]
    cookie = message[COOKIE_AT : COOKIE_AT + 8] if exact else NO_COOKIE
    return DiagRequest(message[16], protocol, _EXTENSIONS, socket_id=identity + cookie, dump=False)


def exact_request(family: int, identity: bytes, cookie: int) -> DiagRequest:
    """The request for a TCP socket that another source reported; `identity` is its ports, addresses and device."""
    socket_id = identity + cookie.to_bytes(8, sys.byteorder)
    return DiagRequest(family, IPPROTO_TCP, _EXTENSIONS, socket_id=socket_id, dump=False)


class LookupSource(Source):
    """The look-ups of one namespace, in order."""

    def __init__(self, output: Output, namespace: int) -> None:
        super().__init__(output, ChannelPurpose(namespace, Role.LOOKUPS))
        self.unanswered = 0
        """Look-ups that were given up."""
        self._waiting: OrderedDict[bytes, DiagRequest] = OrderedDict()
        self._done: dict[bytes, list[Done]] = {}
        self._asked: dict[int, bytes] = {}
        self._sequence = 0
        self._progress = 0.0
        self._refused = False

    @property
    def is_full(self) -> bool:
        """True while nothing can be sent before an answer came."""
        return len(self._asked) >= MAX_OUTSTANDING

    def ask(self, request: DiagRequest, done: Done) -> None:
        """Have `done` called with the answer."""
        key = request.socket_id
        if not self._done:
            self._progress = self.output.now
        if key in self._done:
            self._done[key].append(done)
            return
        if len(self._waiting) >= MOST_WAITING or self._refused:
            self.unanswered += 1
            done(NO_ANSWER)
            return
        self._done[key] = [done]
        self._waiting[key] = request

    def flush(self) -> None:
        while self._waiting and not self.is_full and not self.output.following:
            batch = []
            for _ in range(min(BATCH, len(self._waiting))):
                key, request = self._waiting.popitem(last=False)
                self._sequence = self._sequence % 0xFFFFFFFF + 1
                self._asked[self._sequence] = key
                batch.append(request.encode(self._sequence))
            self.send(b"".join(batch))

    def observe(self, data: bytes) -> None:
        for frame in iterate_messages(data):
            request = DiagRequest.decode(data, frame)
            if request.socket_id in self._done:
                self._waiting.pop(request.socket_id, None)
                self._asked[frame.sequence] = request.socket_id

    def receive(self, data: bytes) -> None:
        self._progress = self.output.now
        for frame in iterate_messages(data):
            key = self._asked.pop(frame.sequence, None)
            if key is None:
                continue
            if frame.type == SOCK_DIAG_BY_FAMILY and frame.length >= ATTRIBUTES_AT:
                self._finish(key, data[frame.offset : frame.end])
            else:
                refused = frame.type == MessageType.ERROR
                self.unanswered += not refused
                self._finish(key, None if refused else NO_ANSWER)

    def _finish(self, key: bytes, message: bytes | None) -> None:
        for done in self._done.pop(key, ()):
            done(message)

    def failed(self, errno: int) -> None:
        if is_refusal(errno):
            self._refused = True
            self.close()
        self.expire()

    def deadline(self) -> float | None:
        return self._progress + PATIENCE if self._done else None

    def expire(self) -> None:
        """Give up the requests without an answer; those that wait are sent next."""
        self._progress = self.output.now
        asked, self._asked = self._asked, {}
        for key in asked.values() if asked else list(self._done):
            self.unanswered += 1
            self._waiting.pop(key, None)
            self._finish(key, NO_ANSWER)

    def give_up_all(self) -> None:
        """Give up all look-ups."""
        while self._done:
            self.expire()
            self._waiting.clear()
