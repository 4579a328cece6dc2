"""The command line: ``nstat-async``, or ``python -m nstat_async``.

Results go to standard output. Everything else goes to standard error, as one line without a
traceback: commands raise their errors, and `main` prints them. Exit status: 0 done (also if
stopped, and if nobody reads any more), 1 the work failed, 2 usage.
"""

from __future__ import annotations

import errno
import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

_DONE, _FAILED, _USAGE = 0, 1, 2
_ENDING = ("SIGINT", "SIGTERM", "SIGHUP")
_AGAIN = 0.01
"""Seconds after which a signal is sent again whose exception was dropped, if the hook that heard of it is over."""


class _Terminated(BaseException):
    """SIGTERM or SIGHUP came while a command worked without an event loop; the argument is its number."""


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
    except BaseException as error:
        if not _is_an_end(error):
            raise
        return _leave(_DONE)


def _is_an_end(error: BaseException) -> bool:
    """True if a signal ended the command. If it came while the event loop began, it is in the exception group of a task."""
    if isinstance(error, (KeyboardInterrupt, _Terminated)):
        return True
    return any(map(_is_an_end, getattr(error, "exceptions", ())))


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
    inside, ended = False, threading.Event()

    def stop(number: int, _frame: FrameType | None) -> None:
        raise _Terminated(number)

    def send_again(dropped: sys.UnraisableHookArgs) -> None:
        """Python drops what a handler raises in a finalizer or a callback, as imports have them: send the signal once more."""
        nonlocal inside
        error = dropped.exc_value
        if not isinstance(error, (KeyboardInterrupt, _Terminated)):
            hook(dropped)
            return
        number = signal.SIGINT if isinstance(error, KeyboardInterrupt) else error.args[0]
        inside = True
        try:
            threading.Thread(target=send, args=(number,), daemon=True).start()
        finally:
            inside = False

    def send(number: int) -> None:
        while not ended.wait(_AGAIN):
            if not inside:  # what a handler raises in the hook is dropped for good
                os.kill(os.getpid(), number)
                return

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in ending_signals()}
    hook, sys.unraisablehook = sys.unraisablehook, send_again
    for number in before:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else stop)
    try:
        yield
    finally:
        sys.unraisablehook = hook
        ended.set()
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
