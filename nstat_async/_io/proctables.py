"""Reads the tables of sockets in ``/proc/net``: raw, ICMP and packet sockets, which sock_diag lacks on some kernels.

For a network namespace that cannot be entered the tables of TCP and UDP are read, too (`Outside`).
"""

from __future__ import annotations

import contextlib
import sys
from array import array
from collections.abc import Iterator
from pathlib import Path

import attrs

from ..sockdiag import SocketTablesAnswer, SocketTablesRequest, TableRow

MOST_BYTES = 8 << 20
"""Most bytes of a table that are read: about 50,000 lines."""
_COUNTED = {
    "tcp": ("sockstat", "TCP:"), "tcp6": ("sockstat6", "TCP6:"), "udp": ("sockstat", "UDP:"), "udp6": ("sockstat6", "UDP6:"),
}  # fmt: skip
"""Where the kernel counts the sockets of a table."""
_PACKET = "packet"
_ADDRESSES = (8, 32)
"""Digits of an address."""
_NOBODY = "0"
"""Inode of a row without a process: a connection that is not accepted yet, or that was closed (``TIME_WAIT``)."""


@attrs.frozen
class Reading:
    """The content of a table."""

    rows: list[TableRow]
    malformed: int
    """How many lines could not be parsed: a newer kernel may have another format."""
    cut: bool
    """True if the table was too long to be read whole."""


def read_tables(net: str, request: SocketTablesRequest) -> SocketTablesAnswer:
    """Read several tables, without those for which the kernel counts no socket.

    Args:
        net: The directory that shows the network namespace.
        request: The names of the tables.
    """
    counted = dict(_count(net))
    rows: list[TableRow] = []
    missing, malformed, cut = list[str](), 0, False
    for name in request.names:
        if name in _COUNTED and counted.get(_COUNTED[name]) == 0:
            continue
        try:
            reading = read_table(net, name)
        except OSError:
            missing.append(name)
        else:
            rows += reading.rows
            malformed, cut = malformed + reading.malformed, cut or reading.cut
    return SocketTablesAnswer(request.namespace, tuple(rows), tuple(missing), malformed=malformed, cut=cut)


def _count(net: str) -> Iterator[tuple[tuple[str, str], int]]:
    """Numbers of sockets by file and first word of the line; nothing if the kernel does not count them."""
    for name in ("sockstat", "sockstat6"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            for words in map(str.split, Path(net, name).read_text("ascii").splitlines()):
                if words[1] == "inuse":
                    yield (name, words[0]), int(words[2])


def read_table(net: str, name: str, most: int | None = None) -> Reading:
    """The sockets of a table that have an inode.

    Args:
        net: The directory that shows the network namespace.
        name: The file.
        most: Bytes that are read at most; `None`: `MOST_BYTES`.

    Raises:
        OSError: There is no such table, or it cannot be read.
    """
    most = MOST_BYTES if most is None else most
    with Path(net, name).open("rb") as file:
        data = file.read(most + 1)
    cut = len(data) > most
    return parse_table(name, (data[: data.rfind(b"\n") + 1] if cut else data).decode("ascii", "replace"), cut=cut)


def parse_table(name: str, text: str, *, cut: bool = False) -> Reading:
    """Parse the text of a table (``tcp4_seq_show``, ``tcp6_seq_show``, ``udp4_seq_show``, ``raw_seq_show``, ``packet_seq_show``)."""
    parse, inode_at, rows, malformed = (_packet_row, 8, [], 0) if name == _PACKET else (_inet_row, 9, [], 0)
    for line in text.splitlines()[1:]:
        words = line.split()
        try:
            if words[inode_at] != _NOBODY:
                rows.append(parse(name, words))
        except (IndexError, ValueError, OverflowError):
            malformed += 1
    return Reading(rows, malformed, cut)


def _inet_row(table: str, words: list[str]) -> TableRow:
    (local, port), (remote, remote_port) = _end(words[1]), _end(words[2])
    state = int(words[3], 16)
    return TableRow(table, int(words[9]), int(words[7]), local, remote, port, remote_port, state=state)


def _end(word: str) -> tuple[bytes, int]:
    """An address, as numbers of 32 bits of this machine's byte order in hexadecimal, and a port."""
    address, _, port = word.partition(":")
    if len(address) not in _ADDRESSES:
        raise ValueError("no address")
    numbers = array("I", bytes.fromhex(address))
    if sys.byteorder == "little":
        numbers.byteswap()
    return numbers.tobytes(), int(port, 16)


def _packet_row(table: str, words: list[str]) -> TableRow:
    return TableRow(table, int(words[8]), int(words[7]), port=int(words[3], 16), device=int(words[4]))
