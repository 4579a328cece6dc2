"""Tables of sockets in ``/proc/net``: of raw, ICMP and packet sockets, which sock_diag does not have, or not everywhere."""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from pathlib import Path

from ..sockdiag import TableRow

_PACKET = "packet"


def read_table(net: str, name: str) -> Iterator[TableRow]:
    """The sockets of a table (``raw_seq_show``, ``packet_seq_show``).

    Args:
        net: The directory that shows the network namespace.
        name: The file.

    Raises:
        OSError: There is no such table, or it cannot be read.
    """
    lines = Path(net, name).read_text("ascii", "replace").splitlines()[1:]
    parse = _packet_row if name == _PACKET else _inet_row
    for line in lines:
        try:
            yield parse(name, line.split())
        except (IndexError, ValueError, struct.error):  # a line that a newer kernel writes in another way
            continue


def _inet_row(table: str, words: list[str]) -> TableRow:
    (local, port), (remote, remote_port) = (_end(word) for word in words[1:3])
    return TableRow(table, int(words[9]), int(words[7]), local, remote, port, remote_port)


def _end(word: str) -> tuple[bytes, int]:
    """An address, as numbers of 32 bits of this machine's byte order in hexadecimal, and a port."""
    address, _, port = word.partition(":")
    numbers = [int(address[at : at + 8], 16) for at in range(0, len(address), 8)]
    return b"".join(number.to_bytes(4, sys.byteorder) for number in numbers), int(port, 16)


def _packet_row(table: str, words: list[str]) -> TableRow:
    return TableRow(table, int(words[8]), int(words[7]), port=int(words[3], 16), device=int(words[4]))
