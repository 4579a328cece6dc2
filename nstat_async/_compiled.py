"""The hottest loops in C, where they were built: `speedups`, or `None`.

The Python code beside each use is the reference and does the same. ``NSTAT_ASYNC_PURE=1``
in the environment turns the C code off.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

speedups: Any = None
"""The module ``nstat_async._speedups`` (``_speedups.c``); `None` when it is not used."""
REVISION = 2
"""The revision of the C code that goes with this Python code: an editable installation may still have an older build.

It is raised, in ``_speedups.c`` as well, when a function is added or takes other arguments.
"""
SPEEDUPS = "not used: NSTAT_ASYNC_PURE is set"
"""Whether it is used, for a person."""

if os.environ.get("NSTAT_ASYNC_PURE", "0") in {"", "0"}:
    try:
        speedups = importlib.import_module("nstat_async._speedups")
    except ImportError:
        SPEEDUPS = "not built: the same in Python"
    else:
        SPEEDUPS = "in use"
        if getattr(speedups, "REVISION", None) != REVISION:
            speedups, SPEEDUPS = None, "not used: built from other sources than the Python code; install again"
