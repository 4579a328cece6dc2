"""Reading single datagrams of a channel."""

from __future__ import annotations

__all__ = ["read_one"]


def read_one(channel) -> bytes:
    """The next datagram; `BlockingIOError` when there is none, and the channel's own errors."""
    batch: list[bytes] = []
    channel.read_into(batch, 1)
    if not batch:
        raise BlockingIOError
    return batch[0]
