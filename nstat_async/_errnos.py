"""Names of Linux' errors (``errno(3)``). The host's own names would be wrong if another system plays a recording."""

from __future__ import annotations

MORE_FILES = "raise the limit (ulimit -n, or LimitNOFILE= of a service)"
"""What helps against too many open files."""
NO_THREAD = "can't start new thread"
"""Python's `RuntimeError` for a thread that the system refuses."""

_ERRORS = {
    1: "Operation not permitted",
    2: "No such file or directory",
    3: "No such process",
    5: "Input/output error",
    7: "Argument list too long",
    9: "Bad file descriptor",
    11: "Resource temporarily unavailable",
    12: "Cannot allocate memory",
    13: "Permission denied",
    16: "Device or resource busy",
    22: "Invalid argument",
    23: "Too many open files in system",
    24: "Too many open files",
    38: "Function not implemented",
    61: "No data available",
    92: "Protocol not available",
    93: "Protocol not supported",
    94: "Socket type not supported",
    95: "Operation not supported",
    97: "Address family not supported by protocol",
    98: "Address already in use",
    105: "No buffer space available",
    110: "Connection timed out",
}


def no_thread_text(error: Exception) -> str:
    """The error of a thread that the system refuses, in words, with what helps against it."""
    return f"{error}; raise the limit (ulimit -u, TasksMax= of a service, or pids.max of a container)"


def error_text(number: int) -> str:
    """An error in words; its number if it is not one that sockets and eBPF programs meet."""
    return _ERRORS.get(number) or f"error {number}"
