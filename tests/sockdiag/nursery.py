"""Programs on the living kernel, each in a fork of one process that has imported the library: to start Python and import it costs more than most of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from typing import Any

from own_namespace import call, loopback_up

NETWORK, MOUNTS, PROCESSES = 0x40000000, 0x20000, 0x20000000
"""Namespaces that a program may have of its own (``clone(2)``)."""
_PRIVATE = 0x44000
"""MS_REC | MS_PRIVATE of ``mount(2)``."""


class Nursery:
    """Runs programs; as a context manager it ends with its block."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def run(self, program: str, namespaces: int = 0) -> tuple[int, str, str]:
        """Exit status, standard output and standard error of a program, which has its own of these namespaces."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            )  # fmt: skip
        try:
            print(json.dumps([program, namespaces]), file=self._process.stdin, flush=True)
            status, out, err = json.loads(self._process.stdout.readline())
        except BaseException:  # what was asked is not over
            self.__exit__()
            raise
        return status, out, err


def _serve() -> None:
    # What programs need, some of which may read no file.
    import sockdiag_fakes  # noqa: F401

    import nstat_async._io.linux
    import nstat_async._io.netlink  # noqa: F401

    "127.0.0.1".encode("idna")  # what `socket` imports late

    for line in sys.stdin:
        print(json.dumps(_forked(*json.loads(line))), flush=True)


def _forked(program: str, namespaces: int) -> list[Any]:
    out, err = (os.memfd_create(name) for name in ("out", "err"))
    pid = os.fork()
    if not pid:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(err, 2)
        _end(program, namespaces)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    texts = [os.pread(file, os.fstat(file).st_size, 0).decode() for file in (out, err)]
    os.close(out)
    os.close(err)
    return [status, *texts]


def _end(program: str, namespaces: int) -> None:
    """Run the program in this process, and end with it."""
    status = 1
    try:
        unshare(namespaces)
        exec(compile(program, "<program>", "exec"), {"__name__": "__main__"})
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def unshare(namespaces: int) -> None:
    """The caller goes on in namespaces of its own, in a process of its own if one of them is of processes."""
    call("unshare", namespaces)
    if namespaces & PROCESSES:
        for _ in range(2):  # the first process of the new namespace, which stays root's, and the program
            if child := os.fork():
                os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    if namespaces & MOUNTS:
        call("mount", b"none", b"/", None, _PRIVATE, None)
        call("mount", b"proc", b"/proc", b"proc", 0, None)
    if namespaces & NETWORK:
        loopback_up()


if __name__ == "__main__":
    _serve()
