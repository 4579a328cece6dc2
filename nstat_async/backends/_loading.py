"""Imports the modules of a backend in a thread, while the event loop runs."""

from __future__ import annotations

import contextlib
import sys
from importlib import import_module

_PACKAGE = __name__.partition(".")[0]


async def load(*modules: str) -> None:
    """Import these modules of the package in a worker thread: the first import takes a tenth of a second or more."""
    missing = [name for module in modules if (name := f"{_PACKAGE}.{module}") not in sys.modules]
    if missing:
        import anyio.to_thread  # noqa: PLC0415  # with asyncio, of which an import alone has no need

        with contextlib.suppress(RuntimeError):  # no thread can be started: their users import them
            await anyio.to_thread.run_sync(lambda: [import_module(name) for name in missing])
