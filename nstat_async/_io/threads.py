"""Does work in a worker thread, or here where no thread can be started.

A process that has as many threads as it may (``ulimit -u``, a service's ``TasksMax=``, a container's ``pids.max``) cannot
start another one. What must be written then holds the event loop for a moment, and is not lost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import anyio.to_thread

from .._errnos import NO_THREAD

_T = TypeVar("_T")


async def in_thread(work: Callable[..., _T], *values: Any, abandon_on_cancel: bool = False) -> _T:
    """Do a little work, which may take a moment, outside the event loop if that is possible.

    Args:
        work: The work.
        *values: Its arguments.
        abandon_on_cancel: Whether a cancellation goes on without waiting for it.
    """
    try:
        return await anyio.to_thread.run_sync(work, *values, abandon_on_cancel=abandon_on_cancel)
    except RuntimeError as error:
        if str(error) != NO_THREAD:
            raise
    return work(*values)
