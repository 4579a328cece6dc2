"""The counters of Darwin's interfaces, from ``sysctl`` ``CTL_NET, PF_ROUTE, 0, 0, NET_RT_IFLIST2, 0``.

A message is a ``struct if_msghdr2`` (``bsd/net/if.h``), a ``struct if_data64`` (``bsd/net/if_var.h``, packed to 4 bytes) and
socket addresses. Messages of other types are skipped by their length (``bsd/net/rtsock.c``, ``sysctl_iflist2``).
"""

from __future__ import annotations

import struct

from .._errors import ProtocolError

INTERFACE_LIST = (4, 17, 0, 0, 6, 0)
"""``CTL_NET``, ``PF_ROUTE``, all protocols, all families, ``NET_RT_IFLIST2``, all interfaces."""
_HEAD = struct.Struct("<HBB")
"""``ifm_msglen``, ``ifm_version``, ``ifm_type``: the same in all messages."""
_WHICH = struct.Struct("<iH")
_WHICH_AT = 8
"""``ifm_flags``, ``ifm_index``."""
_BYTES = struct.Struct("<QQ")
_BYTES_AT = 96
"""``ifm_data.ifi_ibytes``, ``ifm_data.ifi_obytes``: ``if_data64`` begins at 32, and has them at 64."""
_SIZE = 160
"""``sizeof(struct if_msghdr2)``."""
_RTM_IFINFO2 = 0x12
_IFF_LOOPBACK = 0x8
_MOST = 4096
"""Most interfaces that are read."""


def parse_interfaces(data: bytes) -> tuple[tuple[int, int, int], ...]:
    """Index, bytes received and bytes sent of each interface except loopback.

    Raises:
        ProtocolError: A message is shorter than its structure, or goes beyond the end.
    """
    found: list[tuple[int, int, int]] = []
    at = 0
    while at < len(data) and len(found) < _MOST:
        length, kind = _head(data, at)
        flags, index = _WHICH.unpack_from(data, at + _WHICH_AT) if kind == _RTM_IFINFO2 else (_IFF_LOOPBACK, 0)
        if not flags & _IFF_LOOPBACK:
            found.append((index, *_BYTES.unpack_from(data, at + _BYTES_AT)))
        at += length
    return tuple(found)


def _head(data: bytes, at: int) -> tuple[int, int]:
    """Length and type of the message at an offset."""
    length, _, kind = _HEAD.unpack_from(data, at) if len(data) - at >= _HEAD.size else (0, 0, 0)
    if length < (_SIZE if kind == _RTM_IFINFO2 else _HEAD.size) or length > len(data) - at:
        raise ProtocolError(f"a message of {length} bytes in the list of interfaces", offset=at, raw=data)
    return length, kind
