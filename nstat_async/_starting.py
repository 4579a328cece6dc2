"""Ends the command quietly if Ctrl-C or SIGTERM comes while the package is still being imported.

The import takes a tenth of a second, or seconds on a busy machine, before ``_cli.main`` can run. This concerns the
command's process only: a program that imports the library keeps its signal handlers.
"""

from __future__ import annotations

import os
import sys


def is_command(argv: list[str], original: list[str]) -> bool:
    """True for ``nstat-async …`` and ``python -m nstat_async …``, given ``sys.argv`` and ``sys.orig_argv`` of the start."""
    if argv[:1] == ["-m"]:  # its value while Python looks for the package of the module
        return "nstat_async" in original or "-mnstat_async" in original
    name = os.path.basename(argv[0]) if argv else ""  # noqa: PTH119  # pathlib would have to be imported
    return name.removesuffix(".exe").removesuffix("-script.py") == "nstat-async"


def _end_quietly(_number: int, _frame: object) -> None:
    os._exit(0)  # nothing has begun yet, and no other code must see a half imported module


IS_COMMAND = is_command(sys.argv, sys.orig_argv)
"""True if this process is the command, not a program that uses the library."""

if IS_COMMAND:
    import signal

    for _signal, _usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
        if signal.getsignal(_signal) is _usual:  # otherwise it is ignored on purpose, as by nohup
            signal.signal(_signal, _end_quietly)
