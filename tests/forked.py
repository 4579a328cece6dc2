"""Python programs in processes of their own, each a fork of one process that has imported the library.

To start Python and to import the library takes more processor time than what most tests run there. Such a process has
the descriptors, environment, directory, signals, status and end of a program that was started; only its imports are
done already. What a test says about the start itself (imports, signals meanwhile, few descriptors) needs `subprocess`.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
from typing import Any

_SUBREAPER = 36
"""PR_SET_CHILD_SUBREAPER of ``prctl(2)``: a process whose parent ends becomes a child of this one."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PARTS = {
    "anyio": ("_backends._asyncio", "_core._signals"),
    "nstat_async._cli": (
        "_arguments", "_emulate", "_history", "_messages", "_processes", "_record", "_replay", "_serve", "_snapshot", "_watch",
    ),
    "nstat_async._io": ("darwin", "follow", "linux", "netlink", "pump", "record", "replay", "rerun", "selftest"),
    "nstat_async.backends": ("_emulated", "_kernels", "_replay"),
}  # fmt: skip
_USED = ("encodings.idna", *(f"{package}.{name}" for package, names in _PARTS.items() for name in names))
"""What programs would import. What is missing here, they import themselves."""
_EXTRAS = (
    "nstat_async.integrations.prometheus",
    "nstat_async.integrations.server",
    "uvicorn.lifespan.off",
    "uvicorn.protocols.http.auto",
)


def _network() -> int:
    """The network namespace of this thread."""
    return os.stat("/proc/thread-self/ns/net").st_ino if sys.platform == "linux" else 0


_HOME = _network()


class _Nest:
    """The process that is forked. It ends when this one does, however that ends."""

    def __init__(self) -> None:
        self._ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())], pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )  # fmt: skip
        self._set = ctypes.CDLL(None).prctl
        atexit.register(self._end, os.getpid())

    def _end(self, whose: int) -> None:
        if os.getpid() == whose:
            self._ours.close()
            self._process.wait()

    def fork(self, words: list[str], files: list[int], *surroundings: Any) -> int:
        """The number of the new process, which is a child of this one."""
        assert _network() == _HOME, "a fork would not be in the network namespace of whoever asks for it"
        request = json.dumps([words, *surroundings]).encode()
        self._set(_SUBREAPER, 1, 0, 0, 0)
        try:
            socket.send_fds(self._ours, [len(request).to_bytes(4, "big")], files)
            self._ours.sendall(request)
            pid = int.from_bytes(self._ours.recv(4), "big")
        finally:
            self._set(_SUBREAPER, 0, 0, 0, 0)
        assert pid, "the process that is forked has ended"
        return pid


_nests: dict[int, _Nest] = {}
"""By the process that uses it: a fork of the tests has its own."""


class _Forked(subprocess.Popen):
    def _execute_child(
        self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, startupinfo, creationflags, shell,
        p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite, *others,
    ) -> None:  # fmt: skip
        python, *words = map(os.fspath, args)
        assert python == sys.executable
        if preexec_fn or pass_fds or shell:
            raise ValueError("a fork takes none of that")
        nest = _nests.get(os.getpid()) or _nests.setdefault(os.getpid(), _Nest())
        files = [standard if given == -1 else given for standard, given in enumerate((p2cread, c2pwrite, errwrite))]
        ignored = [number for number in _SIGNALS if signal.getsignal(number) is signal.SIG_IGN]
        self.pid = nest.fork(
            words, files, os.fspath(cwd or os.getcwd()), dict(os.environ if env is None else env), ignored
        )
        self._child_created = True
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)


Popen = _Forked if sys.platform == "linux" else subprocess.Popen
"""As `subprocess.Popen` of ``[sys.executable, "-m", module, …]``, ``[…, "-c", program, …]`` or ``[…, path, …]``."""


def run(command: list[Any], *, input: Any = None, timeout: float = 120, **options: Any):  # noqa: A002
    """As ``subprocess.run(command, capture_output=True)``; ``stdout`` may be something else."""
    options = {"stdin": None if input is None else subprocess.PIPE, "stdout": subprocess.PIPE, **options}
    with Popen(command, stderr=subprocess.PIPE, **options) as process:
        try:
            out, err = process.communicate(input, timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def _serve(nest: socket.socket) -> list[Any]:
    """Forks whenever one is asked for, and returns in each fork, with what it shall run and where."""
    while True:
        head, files, _, _ = socket.recv_fds(nest, 4, 3)
        if not head:
            sys.exit()
        request = bytearray()
        while len(request) < int.from_bytes(head, "big"):
            request += nest.recv(65536)
        told, tell = os.pipe()
        waits, go = os.pipe()
        between = os.fork()
        if not between:
            if pid := os.fork():
                os.write(tell, pid.to_bytes(4, "big"))
                os._exit(0)
            os.close(go)
            os.read(waits, 1)  # until whoever asked has adopted it
            for number, file in enumerate(files):
                os.dup2(file, number)
            for file in (told, tell, waits, *files):
                os.close(file)
            return json.loads(request)
        os.waitpid(between, 0)
        nest.sendall(os.read(told, 4))
        for file in (told, tell, waits, go, *files):
            os.close(file)


def _begin(cwd: str, env: dict[str, str], ignored: list[int]) -> None:
    """Make this fork what a program finds when it was started."""
    for number in _SIGNALS:
        usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, signal.SIG_IGN if number in ignored else usual)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        begun = getattr(sys, name)
        file = open(  # noqa: SIM115
            number, "w" if number else "r", 1 if number == 2 else -1, begun.encoding, begun.errors, closefd=False
        )
        setattr(sys, name, file)
        setattr(sys, f"__{name}__", file)


def _run(what: str, *words: str) -> None:
    if what == "-m":
        sys.argv[:], sys.path[0] = words, ""
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    elif what == "-c":
        sys.argv[:], sys.path[0] = ("-c", *words[1:]), ""
        exec(compile(words[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv[:], sys.path[0] = (what, *words), os.path.dirname(what)
        runpy.run_path(what, run_name="__main__")


def _main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C concerns the tests
    for name in _USED:
        importlib.import_module(name)
    for name in _EXTRAS:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()
    with socket.socket(fileno=int(sys.argv[1])) as nest:
        words, *surroundings = _serve(nest)
    _begin(*surroundings)
    _run(*words)


if __name__ == "__main__":
    _main()
