"""The command line's grammar: one parser, one subparser a command.

Only `argparse` and the library's own words are imported here, so ``--help`` and a
usage error are quick and need no extra.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from typing import Any

from .. import __version__
from .._errors import UsageError
from .._model import Provider
from .._options import Ebpf
from ..backends._registry import parse

__all__ = ["COMMANDS", "build_parser"]

SHELLS = ("bash", "zsh", "fish")
SORT_KEYS = ("traffic", "rx", "tx", "rate", "name", "pid", "flows")


def _number(minimum: float, *, above: bool = False) -> Callable[[str], float]:
    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if not math.isfinite(value) or value < minimum or (above and value == minimum):
            raise argparse.ArgumentTypeError(f"{text} must be {'more than' if above else 'at least'} {minimum:g}")
        return value

    return convert


def _whole(minimum: int) -> Callable[[str], int]:
    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if value < minimum:
            raise argparse.ArgumentTypeError(f"{text} must be at least {minimum}")
        return value

    return convert


def _size(text: str) -> int:
    factor = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:].upper(), 1)
    try:
        value = int(text[:-1] if factor > 1 else text) * factor
    except ValueError:
        value = 0
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 5000000 or 100M")
    return value


def _providers(text: str) -> list[Provider]:
    known = {provider.value: provider for provider in Provider}
    words = [word.strip() for word in text.split(",")]
    for word in words:
        if word not in known:
            raise argparse.ArgumentTypeError(f"{word!r} is none of {', '.join(known)}")
    return [known[word] for word in words]


def _timebase(text: str) -> tuple[int, int]:
    numerator, _, denominator = text.partition("/")
    try:
        pair = int(numerator), int(denominator or "1")
    except ValueError:
        pair = (0, 0)
    if min(pair) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no fraction such as 125/3")
    return pair


def _backend(text: str) -> str:
    try:
        parse(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("backend: ")) from None
    return text


def _add_selection(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("which flows")
    group.add_argument("--provider", type=_providers, metavar="NAME,…", help="kinds of flows, e.g. tcp,udp,quic")
    group.add_argument("--pid", type=_whole(0), action="append", metavar="N", help="only this process (repeatable)")
    group.add_argument("--process", action="append", metavar="NAME", help="only processes of this name (repeatable)")
    group.add_argument(
        "--filter",
        action="append",
        metavar="TEXT",
        help="only flows that pass, e.g. 'port=443 & ~loopback' (repeatable)",
    )
    group.add_argument("--no-loopback", action="store_true", help="leave out flows that stay on this machine")


def _add_kernel(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--kernel", metavar="STRING", help="XNU version such as xnu-11417.121.6, where it is not known otherwise"
    )


def _add_source(parser: argparse.ArgumentParser, *, extras: bool = True) -> None:
    group = parser.add_argument_group("where from")
    group.add_argument(
        "--backend",
        type=_backend,
        default="auto",
        metavar="BACKEND",
        help="auto (default), kctl, sock_diag, emulated, unix:PATH or replay:FILE",
    )
    _add_kernel(group)
    if extras:
        group.add_argument(
            "--extras", action="store_true", help="also ask for what needs privilege or costs more (macOS)"
        )
    group.add_argument(
        "--netns", action="append", metavar="NAME|PATH|PID", help="Linux: watch this network namespace (repeatable)"
    )
    group.add_argument(
        "--ebpf",
        choices=[each.value for each in Ebpf],
        help="Linux: eBPF programs, for UDP bytes and every process (auto: where they may be loaded)",
    )


def _add_timing(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("timing")
    group.add_argument("--interval", type=_number(0, above=True), metavar="S", help="seconds between polls (default 1)")
    group.add_argument("--duration", type=_number(0, above=True), metavar="S", help="stop after this many seconds")


def _add_json(parser: argparse.ArgumentParser, what: str = "one JSON object a line") -> None:
    parser.add_argument("--json", action="store_true", help=what)


def _add_stream_output(parser: argparse.ArgumentParser) -> None:
    _add_json(parser)
    parser.add_argument(
        "--details", action="store_true", help="with --json: also the details of reports, and the counts before"
    )
    parser.add_argument("--every-update", action="store_true", help="each report, also those that change nothing")
    parser.add_argument("--utc", action="store_true", help="times of the text form in UTC")
    parser.add_argument("--quiet", action="store_true", help="print no events; count them, and say so at the end")


def _add_counting(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--include-history", action="store_true", help="count what open flows had carried before the start, too"
    )
    parser.add_argument(
        "--effective", action="store_true", help="attribute flows to the process on whose behalf they exist"
    )


def _watch(parser: argparse.ArgumentParser) -> None:
    _add_source(parser)
    _add_timing(parser)
    _add_selection(parser)
    _add_stream_output(parser)


def _top(parser: argparse.ArgumentParser) -> None:
    _add_source(parser)
    _add_timing(parser)
    _add_selection(parser)
    parser.add_argument("--sort", choices=SORT_KEYS, default="rate", help="order at the start (default: rate)")
    _add_counting(parser)
    parser.add_argument("--json", action="store_true", help="no screen: each interval one JSON object a process")


def _processes(parser: argparse.ArgumentParser) -> None:
    _add_source(parser)
    _add_timing(parser)
    _add_selection(parser)
    parser.add_argument("--every", type=_number(0, above=True), metavar="S", help="print a table each S seconds")
    parser.add_argument("--sort", choices=SORT_KEYS, default="traffic", help="order of the rows (default: traffic)")
    _add_counting(parser)
    _add_json(parser, "one JSON object a process")


def _snapshot(parser: argparse.ArgumentParser) -> None:
    _add_source(parser)
    _add_timing(parser)
    _add_selection(parser)
    _add_json(parser, "one JSON object a flow")


def _record(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file", metavar="FILE", help="where to, '-' for standard output; only a recording is replaced without --force"
    )
    parser.add_argument("--force", action="store_true", help="replace an existing file whatever it holds")
    parts = parser.add_argument_group("in parts (FILE.nstat becomes FILE.000001.nstat, …)")
    parts.add_argument("--rotate-size", type=_size, metavar="BYTES", help="begin a new part at this size, e.g. 100M")
    parts.add_argument(
        "--rotate-every", type=_number(0, above=True), metavar="S", help="begin a new part after this many seconds"
    )
    parts.add_argument("--keep", type=_whole(1), metavar="N", help="keep the newest N parts, delete older ones")
    _add_source(parser)
    _add_timing(parser)
    _add_selection(parser)
    _add_json(parser, "the summary at the end as a JSON object")


def _replay(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file", metavar="FILE", nargs="+", help="a recording, '-' for standard input; or its parts in order"
    )
    parser.add_argument(
        "--speed", type=_number(0, above=True), metavar="X", help="1 = as recorded; default: as fast as possible"
    )
    _add_kernel(parser)
    parser.add_argument(
        "--timebase", type=_timebase, metavar="N/D", help="nanoseconds per kernel tick, where the file is silent"
    )
    _add_timing(parser)
    _add_selection(parser)
    _add_stream_output(parser)


def _messages(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="a recording, '-' for standard input")
    _add_kernel(parser)
    _add_json(parser, "the only form there is; accepted for likeness with other commands")


def _doctor(parser: argparse.ArgumentParser) -> None:
    _add_source(parser, extras=False)
    _add_json(parser, "the findings as one JSON object")


def _emulate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--listen", required=True, metavar="PATH", help="AF_UNIX SOCK_SEQPACKET socket to serve on")
    parser.add_argument(
        "--kernel", default="xnu-11417.121.6", metavar="STRING", help="which kernel to be (default: %(default)s)"
    )
    parser.add_argument("--flows", type=_whole(0), default=20, metavar="N", help="flows open at the start (default 20)")
    parser.add_argument("--rate", type=_number(0), default=2.0, metavar="N", help="new flows a second (default 2)")
    parser.add_argument(
        "--life", type=_number(0, above=True), default=10.0, metavar="S", help="mean life (default 10 s)"
    )
    parser.add_argument("--seed", type=_whole(0), default=0, metavar="N", help="of the random workload (default 0)")
    parser.add_argument(
        "--script", metavar="FILE", help="JSON Lines of steps instead of the random workload, '-': stdin"
    )
    parser.add_argument("--privileged", action="store_true", help="answer as to root: extensions, more providers")
    parser.add_argument("--receive-space", type=_whole(256), metavar="N", help="bytes of the clients' receive buffers")
    parser.add_argument("--duration", type=_number(0, above=True), metavar="S", help="stop after this many seconds")


COMMANDS: dict[str, tuple[Callable[[argparse.ArgumentParser], None], str, str, str]] = {
    "watch": (
        _watch,
        "stream events until stopped",
        "Streams flows as they come (+), change (#) and go (-), and says what was missed (!); @ marks listeners.",
        "nstat-async watch --no-loopback --process curl\n  nstat-async watch --json | jq .flow.remote.address",
    ),
    "top": (
        _top,
        "live table of processes",
        "A live table of processes, most traffic first. Needs the extra: pip install 'nstat-async[cli]'.",
        "nstat-async top --interval 2",
    ),
    "processes": (
        _processes,
        "totals per process",
        "Totals per process: once at the end, or a table each S seconds.",
        "nstat-async processes --duration 10\n  nstat-async processes --every 5 --json",
    ),
    "snapshot": (
        _snapshot,
        "the flows of this moment, once",
        "The flows of this moment, once.",
        "nstat-async snapshot --provider tcp",
    ),
    "record": (
        _record,
        "record the kernel conversation",
        "Records the conversation with the kernel, byte by byte, for `replay` and `messages`.",
        "nstat-async record session.nstat --duration 60",
    ),
    "replay": (
        _replay,
        "a recording as events",
        "A recording as events: `watch` on a file.",
        "nstat-async replay session.nstat\n  nstat-async replay --speed 1 --json old.bin --kernel xnu-2422.115.4",
    ),
    "messages": (
        _messages,
        "every protocol message of a recording, decoded",
        "Every protocol message of a recording, decoded to the last field: one JSON object a line.",
        "nstat-async messages session.nstat | jq 'select(.type == \"ERROR\")'",
    ),
    "doctor": (
        _doctor,
        "what this machine offers",
        "What this machine offers, with a live self-check. Exit status 1 when nothing works.",
        "nstat-async doctor --json",
    ),
    "emulate": (
        _emulate,
        "serve the emulated kernel on a socket",
        "Serves the emulated kernel: one packet is one datagram of the control socket, both ways.",
        "nstat-async emulate --listen /tmp/n.sock &\n  nstat-async watch --backend unix:/tmp/n.sock --kernel xnu-11417",
    ),
}
"""Name to (options, short help, description, examples)."""


class _PrintCompletion(argparse.Action):
    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,  # noqa: ARG002
        values: str | Sequence[Any] | None,
        option_string: str | None = None,  # noqa: ARG002
    ) -> None:
        from ._completion import completion  # noqa: PLC0415  # needed by nobody else

        print(completion(parser, str(values)), end="")
        parser.exit(0)


def build_parser() -> argparse.ArgumentParser:
    """The whole grammar; `command` of the result names the command."""
    parser = argparse.ArgumentParser(
        prog="nstat-async",
        description="Stream every network flow of this machine, with the process behind it.",
        epilog="example:\n  nstat-async watch --no-loopback\n\nEach command explains itself: nstat-async watch --help",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"nstat-async {__version__}")
    parser.add_argument(
        "--print-completion", action=_PrintCompletion, choices=SHELLS, metavar="SHELL",
        help="print a completion script for bash, zsh or fish, and exit",
    )  # fmt: skip
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (configure, short, description, example) in COMMANDS.items():
        sub = commands.add_parser(
            name,
            help=short,
            description=description,
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        configure(sub)
    return parser
