"""A client of the emulated kernel for tests: sends requests, reads messages."""

from nstat_async.ntstat._framer import split
from nstat_async.ntstat._messages import AddAllSources, GetSourceDescription, GetUpdate, QuerySource, decode_message

SUPPRESS = 0x100000


class Talk:
    """One control socket, with a receive buffer that is large enough unless told otherwise."""

    def __init__(self, kernel, *, receive_buffer=1 << 20):
        self.kernel = kernel
        self.layout = kernel.release.layout
        self.client = kernel.connect()
        if receive_buffer is not None:
            self.client.set_receive_buffer(receive_buffer)
        self.context = 0

    def send(self, request):
        self.client.send(request.encode(self.layout))
        return self.read()

    def datagrams(self):
        found = []
        while True:
            try:
                found.append(self.client.receive())
            except BlockingIOError:
                return found

    def decode(self, datagram):
        frames, defect = split(datagram, has_lengths=self.layout.has_lengths)
        assert defect is None
        return [decode_message(self.kernel.release, datagram, frame) for frame in frames]

    def read(self):
        return [message for datagram in self.datagrams() for message in self.decode(datagram)]

    def ask(self, kind, *, srcref=None, flags=3, **fields):
        self.context += 1
        reference = self.layout.all_sources if srcref is None else srcref
        return self.send(kind(srcref=reference, context=self.context, flags=flags, **fields))

    def watch(self, provider, *, userland=None, filter=0, **fields):  # noqa: A002  (the protocol's word)
        self.context += 1
        number = self.kernel.provider_number(provider, userland=userland)
        return self.send(AddAllSources(provider=number, filter=filter, context=self.context, **fields))

    def query(self, **fields):
        return self.ask(QuerySource, **fields)

    def describe(self, **fields):
        return self.ask(GetSourceDescription, **fields)

    def update(self, **fields):
        return self.ask(GetUpdate, **fields)


def names(messages):
    return [message.name for message in messages]


def descriptor(kernel, message):
    structure = kernel.release.descriptor_name(message.provider)
    return kernel.release.layout[structure].decode(message.descriptor)


def counts(kernel, message):
    return kernel.release.layout["nstat_counts"].decode(message.counts)
