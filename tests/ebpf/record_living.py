"""Make `records/story.ring`: what a kernel gave while known traffic ran. As root: ``PYTHONPATH=tests python tests/ebpf/record_living.py``.

The file is a sequence of pieces, each with two numbers of 32 bits before it: the channel (0 the ring, 1 the maps) and its
length. The story is in `play`; `test_ebpf_story.py` says what it must come to.
"""

from __future__ import annotations

import socket
import struct
from pathlib import Path

from ebpf_living import Watch
from own_namespace import own_namespace

from nstat_async.ebpf import Operation, encode_request

PLACE = Path(__file__).parent / "records" / "story.ring"
RING, MAPS = 0, 1


def receive(sock, size):
    while size:
        size -= len(sock.recv(size))


def play(step):
    """One connection of 1,000 and 70,000 bytes; one that is refused; five datagrams of 50 bytes and five answers of 20."""
    server = socket.socket()
    server.bind(("127.0.0.1", 4001))
    server.listen()
    client = socket.create_connection(("127.0.0.1", 4001))
    inbound, _ = server.accept()
    client.sendall(bytes(1000))
    receive(inbound, 1000)
    inbound.sendall(bytes(70000))
    receive(client, 70000)
    client.close()
    inbound.recv(1)
    inbound.close()
    server.close()
    refused = socket.socket()
    refused.connect_ex(("127.0.0.1", 4002))
    refused.close()
    step(RING)
    one = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    one.bind(("::1", 4003))
    other = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    other.connect(("::1", 4003))
    for _ in range(5):
        other.send(bytes(50))
        _, address = one.recvfrom(100)
        one.sendto(bytes(20), address)
        other.recv(100)
    step(RING)
    step(MAPS)
    one.close()
    other.close()
    step(RING)
    step(MAPS)


def main():
    pieces = []
    with own_namespace(), Watch() as watch:
        watch.drain()

        def step(channel):
            batch: list[bytes] = []
            if channel == MAPS:
                for operation in (Operation.FLOWS, Operation.STATISTICS):
                    watch.maps.send(encode_request(operation))
                while watch.maps.read_into(batch, 9):
                    pass
            else:
                while watch.ring.read_into(batch, 9):
                    pass
            pieces.extend((channel, data) for data in batch)

        play(step)
    PLACE.write_bytes(b"".join(struct.pack("<II", channel, len(data)) + data for channel, data in pieces))


if __name__ == "__main__":
    main()
