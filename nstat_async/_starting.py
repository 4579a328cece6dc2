"""The command's first moment: Ctrl-C and SIGTERM while the rest of the package is imported end it quietly.

The package is imported before ``_cli.main`` can run, and that takes a tenth of a second, on a busy machine several.
Only the process of the command is concerned: whoever imports the library keeps the signals that it has.
"""

from __future__ import annotations

import os
import sys


def is_command(argv: list[str], original: list[str]) -> bool:
    """True for ``nstat-async …`` and ``python -m nstat_async …``, given ``sys.argv`` and ``sys.orig_argv`` of the start."""
    if argv[:1] == ["-m"]:  # so it is while the package of the module is looked for
        return "nstat_async" in original or "-mnstat_async" in original
    name = os.path.basename(argv[0]) if argv else ""  # noqa: PTH119  # pathlib would have to be imported
    return name.removesuffix(".exe").removesuffix("-script.py") == "nstat-async"


def _end_quietly(_number: int, _frame: object) -> None:
    os._exit(0)  # nothing was begun, and a module that is half imported must not be left to others


IS_COMMAND = is_command(sys.argv, sys.orig_argv)
"""True if this process is the command; else the library is somebody's."""

if IS_COMMAND:
    import signal

    for _signal, _usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
        if signal.getsignal(_signal) is _usual:  # else somebody ignores it on purpose, as nohup does
            signal.signal(_signal, _end_quietly)
