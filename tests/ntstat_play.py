"""A session that is fed by hand, with the messages of a kernel of any release."""

from __future__ import annotations

from ntstat_wire import NEWEST_OF_LAYOUT, Wire

from nstat_async.ntstat import Mode, Session

LAYOUTS = sorted(NEWEST_OF_LAYOUT)


class Play:
    """A passive session that is fed by hand."""

    def __init__(self, wire: Wire, **options) -> None:
        self.wire = wire
        self.session = Session(wire.kernel, mode=Mode.FOLLOWING, **options)
        self.now = 1000.0

    def __call__(self, *datagrams: bytes | list[bytes]) -> list:
        for entry in datagrams:
            for datagram in entry if isinstance(entry, list) else [entry]:
                self.session.receive_datagram(datagram, self.now)
        return self.session.take_events()

    def ask(self, request: bytes) -> None:
        self.session.observe_request(request, self.now)


def one(events: list, kind: type):
    (found,) = [e for e in events if isinstance(e, kind)]
    return found
