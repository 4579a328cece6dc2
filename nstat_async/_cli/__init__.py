"""The command line: ``nstat-async``, or ``python -m nstat_async``.

Results go to standard output. Everything else goes to standard error, as one line without a
traceback: commands raise their errors, and `main` prints them. Exit status: 0 done (also if
stopped, and if nobody reads any more), 1 the work failed, 2 usage.
"""

from __future__ import annotations

import errno
import importlib
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

_DONE, _FAILED, _USAGE = 0, 1, 2
_ENDING = ("SIGINT", "SIGTERM", "SIGHUP")


class _Terminated(BaseException):
    """SIGTERM or SIGHUP came while a command worked without an event loop."""


def ending_signals() -> list[signal.Signals]:
    """The signals that end a command, without those that the caller ignores on purpose, as nohup does."""
    known = [signal.Signals[name] for name in _ENDING if hasattr(signal, name)]
    return [each for each in known if signal.getsignal(each) is not signal.SIG_IGN]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The arguments; `None`: those of the process.

    Returns:
        The exit status.
    """
    try:
        with _signals_taken():
            return _main(argv)
    except (KeyboardInterrupt, _Terminated):
        return _leave(_DONE)


def _main(argv: Sequence[str] | None) -> int:
    from .._errnos import MORE_FILES, NO_THREAD, no_thread_text  # noqa: PLC0415  # Ctrl-C is handled from here on
    from .._errors import BackendUnavailableError, NstatError, UnavailableReason, UsageError  # noqa: PLC0415
    from ._arguments import build_parser  # noqa: PLC0415
    from ._output import complain  # noqa: PLC0415

    try:
        try:
            words = sys.argv[1:] if argv is None else list(argv)
            arguments = build_parser(*words[:1]).parse_args(words)
            command = importlib.import_module(f"._{arguments.command}", __name__)
            try:
                status: int = command.run(arguments)
            except UsageError as error:
                arguments.parser.misused(str(error))
        except SystemExit as end:  # help or a usage error was printed
            status = end.code if isinstance(end.code, int) else _USAGE
        _flush()
    except BrokenPipeError:
        return _leave(_DONE)
    except NstatError as error:
        missing = (
            isinstance(error, BackendUnavailableError) and error.reason is UnavailableReason.DEPENDENCY and error.detail
        )
        complain(f"error: {'the recorded run failed: ' if error.recorded else ''}{missing or error}")
        return _leave(_FAILED)
    except OSError as error:
        what = str(error.strerror or error)
        if error.errno == errno.EMFILE:  # the name of the file does not matter
            what += f"; {MORE_FILES}"
        elif error.filename is not None:
            what = f"{error.filename}: {what}"
        complain(f"error: {what}")
        return _leave(_FAILED)
    except Exception as error:
        # Before 3.12 an exception in `__set_name__`, while a class is made, becomes a `RuntimeError`: any import may do it.
        if isinstance(error.__cause__, (KeyboardInterrupt, _Terminated)):
            raise error.__cause__ from None
        if sys.flags.dev_mode:  # python -X dev: show the traceback
            raise
        if str(error) == NO_THREAD:
            complain(f"error: {no_thread_text(error)}")
            return _leave(_FAILED)
        complain(f"internal error: {type(error).__name__}: {error} (python -X dev -m nstat_async … shows where)")
        return _leave(_FAILED)
    return status


@contextmanager
def _signals_taken() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the command like Ctrl-C; afterwards the caller's handlers are back."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise _Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in ending_signals()}
    for number in before:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def _flush() -> None:
    if sys.stdout is not None:
        sys.stdout.flush()


def _leave(status: int) -> int:
    """Exit without a second error message if standard output is gone."""
    from ._output import abandon  # noqa: PLC0415

    try:
        _flush()
    except (OSError, ValueError):
        abandon(sys.stdout)
    return status
