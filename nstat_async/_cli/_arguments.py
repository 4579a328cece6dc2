"""The command line's grammar: one parser, one subparser per command.

Only `argparse` and a few of the library's own names are imported here, so ``--help`` and a
usage error are quick and need no extra.
"""

from __future__ import annotations

import argparse
import importlib
import math
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from operator import attrgetter
from typing import Any

import attrs

from .. import __version__
from .._checks import LONGEST_SECONDS, number_of
from .._errors import UsageError
from .._model import Provider
from .._options import SHORTEST_PULSE, Ebpf
from ..backends._registry import parse as parse_backend
from ._parser import Parser

_COLUMNS = 78
_LAST_PORT = 65_535
_LAST_PID = 2**31 - 1
_EPOCH = 1e8
"""Numbers from this one on are seconds since the epoch."""
_SPANS = {"s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0, "w": 604_800.0}
SHELLS = ("bash", "zsh", "fish")
SORT_KEYS = ("rate", "traffic", "rx", "tx", "flows", "name", "pid", "user", "unit", "rx-rate", "tx-rate")


def _number(
    minimum: float, *, above: bool = False, whole: bool = False, most: float = math.inf
) -> Callable[[str], float]:
    def convert(text: str) -> float:
        try:
            value = number_of(text, int) if whole else number_of(text, float)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a {'whole ' if whole else ''}number") from None
        if not abs(value) < math.inf:
            raise argparse.ArgumentTypeError(f"{text!r} is not a finite number")
        if value < minimum or (above and value == minimum):
            raise argparse.ArgumentTypeError(f"{text} must be {'more than' if above else 'at least'} {minimum:g}")
        if value > most:
            raise argparse.ArgumentTypeError(f"{text} must be at most {most}")
        return value

    return convert


_positive = _number(0, above=True, most=LONGEST_SECONDS)


def _seconds(text: str) -> float:
    """Seconds, or 5m, 2h, 7d, 4w."""
    return _positive(str(_span(text)) if text[-1:] in _SPANS else text)


def _pulse(text: str) -> float:
    return 0.0 if text == "off" else _number(SHORTEST_PULSE, most=LONGEST_SECONDS)(text)


def _size(text: str) -> int:
    factor = {"K": 10**3, "M": 10**6, "G": 10**9}.get(text[-1:].upper(), 1)
    try:
        value = number_of(text[:-1] if factor > 1 else text, int) * factor
    except ValueError:
        value = 0
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 5000000 or 100M")
    return value


def _name(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("the text is empty")
    return text


def _span(text: str) -> float:
    """Seconds, or 5m, 2h, 7d, 4w."""
    factor = _SPANS.get(text[-1:], 1.0)
    try:
        value = number_of(text[:-1] if text[-1:] in _SPANS else text, float) * factor
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 90, 5m, 2h, 7d or 4w")
    return value


def _providers(text: str) -> list[Provider]:
    known = {provider.value: provider for provider in Provider}
    words = [word.strip() for word in text.split(",")]
    for word in words:
        if word not in known:
            raise argparse.ArgumentTypeError(f"{word!r} is not one of {', '.join(known)}")
    return [known[word] for word in words]


def _timebase(text: str) -> tuple[int, int]:
    numerator, _, denominator = text.partition("/")
    try:
        pair = number_of(numerator, int), number_of(denominator or "1", int)
    except ValueError:
        pair = (0, 0)
    if min(pair) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a fraction such as 125/3")
    return pair


def _backend(text: str) -> str:
    _given(parse_backend, text)
    return text


def _lazily(module: str, name: str) -> Callable[[str], Any]:
    """A function of the library that converts a text; it is imported on first use, so not for ``--help``."""

    def convert(text: str) -> Any:
        return _given(attrgetter(name)(importlib.import_module(module, __package__)), text)

    return convert


def _given(make: Callable[[str], Any], text: str) -> Any:
    """Convert a text by a function of the library; its errors become those of `argparse`."""
    try:
        return make(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error).partition(": ")[2]) from None


def _since(text: str) -> float:
    """Seconds since the epoch, given as a time span until now, a time in this machine's zone, or a number."""
    unit = _SPANS.get(text[-1:])
    try:
        if unit is not None and 0 <= (ago := number_of(text[:-1], float) * unit) < math.inf:
            return max(0.0, time.time() - ago)
        if text.replace(".", "", 1).isdigit() and _EPOCH <= number_of(text, float) < math.inf:
            return float(text)
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a duration such as 24h nor a time such as 2026-11-25T08:00"
        ) from None


_SECONDS: dict[str, Any] = {"type": _seconds, "metavar": "S"}
_NUMBER: dict[str, Any] = {"type": _number(0, whole=True), "metavar": "N"}
_FILE: dict[str, Any] = {"type": _name, "metavar": "FILE"}
_FLAG: dict[str, Any] = {"action": "store_true"}
_LIST: dict[str, Any] = {"action": "append"}
_GROUPS: dict[str, dict[str, dict[str, Any]]] = {
    "source": {
        "--backend": {
            "type": _backend, "default": "auto", "metavar": "BACKEND",
            "help": "auto (default), kctl, sock_diag, emulated, unix:PATH, replay:FILE or fleet:URL",
        },
        "--kernel": {"metavar": "STRING", "help": "XNU version such as xnu-11417.121.6, if it is not known otherwise"},
        "--extras": {**_FLAG, "help": "also ask for what needs privilege or costs more (Linux: command lines, other holders, buffers)"},
        "--since": {"type": _since, "metavar": "WHEN", "help": "of a fleet: begin so long ago (90s, 30m, 24h, 7d), or at a time (2026-11-25T08:00)"},
        "--netns": {**_LIST, "metavar": "NAME|PATH|PID|all", "help": "Linux: watch this network namespace (repeatable), or all"},
        "--ebpf": {
            "choices": [each.value for each in Ebpf],
            "help": "Linux: eBPF programs, for UDP bytes and every process (auto: where they may be loaded)",
        },
        "--pulse": {
            "type": _pulse, "metavar": "S|off",
            "help": "Linux without eBPF: seconds between looks for the processes of short flows (default 0.02)",
        },
    },
    "timing": {
        "--interval": {**_SECONDS, "help": "seconds between polls (default 1)"},
        "--duration": {**_SECONDS, "help": "stop after this many seconds (or 5m, 2h, 7d)"},
    },
    "which flows": {
        "--provider": {"type": _providers, "action": "extend", "metavar": "NAME,…", "help": "kinds of flows, e.g. tcp,udp,quic (repeatable)"},
        "--pid": {"type": _number(0, whole=True, most=_LAST_PID), "metavar": "N", **_LIST, "help": "only this process (repeatable)"},
        "--process": {"type": _name, **_LIST, "metavar": "NAME", "help": "only processes of this name (repeatable)"},
        "--filter": {
            "type": _lazily("..filters", "parse"), **_LIST, "metavar": "TEXT", "help": "only flows that pass, e.g. 'port=443 & ~loopback' (repeatable)",
        },
        "--no-loopback": {**_FLAG, "help": "leave out flows that stay on this machine"},
    },
    "in parts (FILE.nstat becomes FILE.000001.nstat, …)": {
        "--rotate-size": {"type": _size, "metavar": "BYTES", "help": "begin a new part at this size, e.g. 100M"},
        "--rotate-every": {**_SECONDS, "help": "begin a new part after this many seconds (or 5m, 2h, 7d)"},
        "--keep": {"type": _number(1, whole=True), "metavar": "N", "help": "keep the newest N parts, delete older ones"},
    },
}  # fmt: skip
"""Options that commands share, by the headings of ``--help``."""
_KERNEL = {"--kernel": _GROUPS["source"]["--kernel"]}
_LIVE = ("source", "timing", "which flows")


def _form(fields: str, example: str) -> dict[str, dict[str, Any]]:
    """Options for the form of results."""
    return {
        "--format": {
            "choices": ("text", "json", "csv", "ocsf"), "default": "text",
            "help": "text (default), JSON Lines, CSV, or OCSF 1.8 network activity",
        },
        "--json": {"action": "store_const", "dest": "format", "const": "json", "help": "as --format json"},
        "--fields": {
            "type": _lazily("._columns", fields), "action": "extend", "metavar": "NAME,…", "help": f"only these fields, e.g. {example} (docs/fields.md has all; repeatable)",
        },
    }  # fmt: skip


_STREAM = {
    **_form("event_columns", "time,event,pid,name,remote,rx_bytes"),
    "--details": {**_FLAG, "help": "with --json: also the details of reports, and the previous counts"},
    "--every-update": {**_FLAG, "help": "show every report, also those that change nothing"},
    "--utc": {**_FLAG, "help": "times of the text form in UTC"},
    "--quiet": {**_FLAG, "help": "print no events; count them, and say so at the end"},
}
_COUNTING = {
    "--include-history": {**_FLAG, "help": "count what open flows had carried before the start, too"},
    "--effective": {**_FLAG, "help": "attribute flows to the process on whose behalf they exist"},
}
_VIEW = {
    "--by": {
        "type": _lazily("..aggregate", "GroupBy.named"), "default": "process", "metavar": "VIEW",
        "help": "what a row is: process (default), user, unit, container, remote-address, remote-port, interface, connection, …",
    },
    "--names": {**_FLAG, "help": "ask name servers for the names of remote addresses"},
}  # fmt: skip


def _json(what: str) -> dict[str, dict[str, Any]]:
    return {"--json": {**_FLAG, "help": what}}


def _sort(default: str, what: str) -> dict[str, dict[str, Any]]:
    return {"--sort": {"choices": SORT_KEYS, "default": default, "help": f"{what} (default: {default})"}}


@attrs.frozen
class Command:
    """The options and the help of one command."""

    short: str
    description: str
    example: str
    options: Mapping[str, Mapping[str, Any]]
    """Its own options, with the keywords of `argparse`."""
    groups: tuple[str, ...] = ()
    """Headings of the shared options that it takes."""
    without: tuple[str, ...] = ()
    """Options in these groups that it does not take."""
    needs: Mapping[str, tuple[str, ...]] = attrs.field(factory=dict)
    """`Parser.needs` of the command."""
    apart: Mapping[str, tuple[str, ...]] = attrs.field(factory=dict)
    """`Parser.apart` of the command."""

    def usage(self, name: str) -> str:
        """The usage of the command, in one line."""
        shown = [
            " ".join([*[option] * (option[0] == "-"), each.get("metavar", "FILE"), *["..."] * ("nargs" in each)])
            for option, each in self.options.items()
            if option[0] != "-" or each.get("required")
        ]
        return " ".join([name, *shown, "[options]"])

    def configure(self, parser: Parser) -> None:
        """Add the options."""
        parser.needs, parser.apart = self.needs, self.apart
        for name, keywords in self.options.items():
            parser.add_argument(name, **keywords)
        for heading in self.groups:
            group = parser.add_argument_group(heading)
            for name, keywords in _GROUPS[heading].items():
                if name not in self.without:
                    group.add_argument(name, **keywords)


COMMANDS: dict[str, Command] = {
    "watch": Command(
        "stream events until stopped",
        "Streams flows as they come (+), change (#) and go (-), and says what was missed (!); @ marks listeners.",
        "nstat-async watch --no-loopback --process curl\n  nstat-async watch --json | jq .flow.remote.address",
        _STREAM,
        _LIVE,
    ),
    "top": Command(
        "live table of processes",
        "A live table of processes, users, remotes, …, most traffic first. Needs the extra: pip install 'nstat-async[cli]'.",
        "nstat-async top --interval 2\n  nstat-async top --by remote-address --names",
        {
            **_VIEW,
            **_sort("rate", "order at the start"),
            **_COUNTING,
            **_json("no screen: each interval one JSON object per row"),
        },
        _LIVE,
    ),
    "processes": Command(
        "totals per process, user, remote, …",
        "Totals per process, user, remote, …: once at the end, or a table each S seconds.",
        "nstat-async processes --duration 10\n  nstat-async processes --by remote-address --every 5 --json",
        {
            **_VIEW,
            "--every": {**_SECONDS, "help": "print a table each S seconds (of a recording: of its own time)"},
            **_sort("traffic", "order of the rows"),
            **_COUNTING,
            **_form("row_columns", "pid,name,rx_bytes"),
        },
        _LIVE,
    ),
    "snapshot": Command(
        "the flows of this moment, once",
        "The flows of this moment, once.",
        "nstat-async snapshot --provider tcp",
        _form("event_columns", "pid,name,local,remote,state"),
        _LIVE,
        without=("--ebpf", "--pulse", "--since"),  # they see what begins from now on
    ),
    "record": Command(
        "record the kernel conversation",
        "Records the conversation with the kernel, byte by byte, for `replay` and `messages`. It has all flows: a filter is "
        "for the replay.",
        "nstat-async record session.nstat --duration 60",
        {
            "file": {
                **_FILE,
                "help": "the file to write, '-' for standard output; only a recording is replaced without --force",
            },
            "--force": {**_FLAG, "help": "replace an existing file whatever it holds"},
            **_json("the summary at the end as a JSON object"),
        },
        ("in parts (FILE.nstat becomes FILE.000001.nstat, …)", *_LIVE),
        without=("--since",),
        needs={"--keep": ("--rotate-size", "--rotate-every")},
    ),
    "publish": Command(
        "send this machine's events to a NATS server",
        "Publishes the events of this machine to NATS JetStream, for a fleet: --backend fleet:URL shows all machines "
        "that do. Needs the extra: pip install 'nstat-async[nats]'.",
        "nstat-async publish nats://192.0.2.1:4222 --host web1\n  nstat-async top --backend fleet:nats://192.0.2.1:4222",
        {
            "url": {"metavar": "URL", "help": "the server, e.g. nats://192.0.2.1:4222 or tls://…"},
            "--host": {"metavar": "NAME", "help": "this machine's name in the fleet (default: its host name up to the first dot)"},
            "--label": {**_LIST, "metavar": "NAME=TEXT", "help": "more about this machine, e.g. rack=7 (repeatable)"},
            "--creds": {**_FILE, "help": "NATS credentials; see also NATS_CREDS, NATS_TOKEN, NATS_CA, …"},
            "--spool": {**_FILE, "help": "keep messages in this file until the server has them, even after this command ends"},
            "--spool-size": {"type": _size, "metavar": "BYTES", "help": "most bytes in this file (default 256M)"},
            "--details": {**_FLAG, "help": "also the details of reports"},
            "--no-compress": {**_FLAG, "help": "messages that can be read without nstat-async"},
        },
        _LIVE,
        without=("--since",),
        needs={"--spool-size": ("--spool",)},
    ),
    "replay": Command(
        "stream the events of a recording",
        "Streams the events of a recording, as `watch` streams those of a kernel.",
        "nstat-async replay session.nstat\n  nstat-async replay --speed 1 --json old.bin --kernel xnu-2422.115.4",
        {
            "file": {
                **_FILE,
                "nargs": "+",
                "help": "a recording, '-' for standard input; or its parts in order",
            },
            "--speed": {"type": _positive, "metavar": "X", "help": "1 = as recorded; default: as fast as possible"},
            **_KERNEL,
            "--timebase": {
                "type": _timebase, "metavar": "N/D", "help": "nanoseconds per kernel tick, if the file does not say",
            },
            **_STREAM,
            "--interval": {**_SECONDS, "help": "no effect: a recording has its polls"},
        },
        ("timing", "which flows"),
        without=("--interval",),  # it takes its own, so that the options of `watch` can be given
    ),
    "serve": Command(
        "live page, JSON and event stream over HTTP",
        "Serves the live page, /processes as JSON, /events as server-sent events, and /metrics with --metrics. "
        "Needs the extra: pip install 'nstat-async[server]'.",
        "nstat-async serve\n  nstat-async serve --metrics --host 0.0.0.0 --token new",
        {
            "--host": {
                "default": "127.0.0.1", "metavar": "HOST",
                "help": "name or address to listen on (default: %(default)s); beyond loopback with a token only",
            },
            "--port": {"type": _number(0, whole=True, most=_LAST_PORT), "default": 8765, "metavar": "N", "help": "TCP port (default: %(default)s; 0: any)"},
            "--unix-socket": {"type": _name, "metavar": "PATH", "help": "listen on this socket instead; only its user may connect"},
            "--token": {
                "type": _name, "metavar": "TOKEN",
                "help": "a secret that every request must carry; 'new' makes one. Default: NSTAT_TOKEN in the environment",
            },
            "--allow-host": {**_LIST, "type": _name, "metavar": "NAME", "help": "accept requests for this host name, too (repeatable)"},
            "--metrics": {**_FLAG, "help": "also /metrics, for Prometheus (needs the extra 'prometheus')"},
            "--include-history": _COUNTING["--include-history"],
        },
        _LIVE,
        apart=dict.fromkeys(("--host", "--port"), ("--unix-socket",)),
    ),
    "history": Command(
        "record a history of traffic, or query it",
        "Queries a history of traffic, an SQLite file: who used how much, and when. With --record: writes it, until stopped.",
        "nstat-async history traffic.db --record --keep 90d\n"
        "  nstat-async history traffic.db --since 7d --by remote\n"
        "  nstat-async history traffic.db --name curl --step 1h",
        {
            "file": {**_FILE, "help": "the history"},
            "--record": {**_FLAG, "help": "write it; created if it does not exist"},
            "--bucket": {"type": _span, "default": 300.0, "metavar": "T", "help": "with --record: resolution (default 5m)"},
            "--keep": {"type": _span, "metavar": "T", "help": "with --record: delete what is older, e.g. 90d"},
            "--remotes": {
                **_NUMBER, "default": 200,
                "help": "with --record: remote addresses kept for each bucket (default %(default)s; 0: none)",
            },
            "--by": {
                "choices": ("name", "process", "user", "unit", "container", "pod", "remote", "outcome"), "default": "name",
                "help": "who (default: name of the process)",
            },
            "--step": {"type": _span, "metavar": "T", "help": "a row for each span of time such as 1h or 1d (a day of UTC), instead of who"},
            "--since": {"type": _since, "metavar": "WHEN", "help": "from this time on: 7d (ago), 2026-01-31, 2026-01-31T12:00, or seconds of the epoch"},
            "--until": {"type": _since, "metavar": "WHEN", "help": "until this time, in the same forms"},
            "--name": {"type": _name, "metavar": "NAME", "help": "only processes of this name"},
            "--limit": {"type": _number(1, whole=True), "default": 50, "metavar": "N", "help": "most rows (default %(default)s)"},
            **_json("one JSON object per row"),
        },
        _LIVE,
        without=("--since",),  # of the history itself
        needs=dict.fromkeys(
            ("--bucket", "--keep", "--remotes", *(name for group in _LIVE for name in _GROUPS[group] if name != "--since")),
            ("--record",),
        ),
        apart={
            **dict.fromkeys(("--step", "--since", "--until", "--name", "--limit", "--json"), ("--record",)),
            "--by": ("--record", "--step"),
        },
    ),
    "messages": Command(
        "print every protocol message of a recording, decoded",
        "Every protocol message of a recording, decoded to the last field: one JSON object per line.",
        "nstat-async messages session.nstat | jq 'select(.type == \"ERROR\")'",
        {
            "file": {**_FILE, "help": "a recording, '-' for standard input"},
            **_KERNEL,
            **_json("the only output format; accepted as in other commands"),
        },
    ),
    "doctor": Command(
        "what this machine offers",
        "What this machine offers, with a live self-check. Exit status 1 when nothing works.",
        "nstat-async doctor --json",
        _json("the findings as one JSON object"),
        ("source",),
        without=("--extras", "--ebpf", "--pulse", "--since"),
    ),
    "emulate": Command(
        "serve the emulated kernel on a socket",
        "Serves the emulated kernel: one packet is one datagram of the control socket, both ways.",
        "nstat-async emulate --listen /tmp/n.sock &\n  nstat-async watch --backend unix:/tmp/n.sock --kernel xnu-11417",
        {
            "--listen": {"required": True, "type": _name, "metavar": "PATH", "help": "AF_UNIX SOCK_SEQPACKET socket to serve on"},
            "--kernel": {
                "default": "xnu-11417.121.6", "metavar": "STRING", "help": "the kernel to emulate (default: %(default)s)",
            },
            "--flows": {"type": _number(0, whole=True, most=1_000_000), "metavar": "N", "default": 20, "help": "flows open at the start (default 20)"},
            "--rate": {"type": _number(0), "default": 2.0, "metavar": "N", "help": "new flows a second (default 2)"},
            "--life": {**_SECONDS, "default": 10.0, "help": "mean life (default 10 s)"},
            "--seed": {**_NUMBER, "default": 0, "help": "of the random workload (default 0)"},
            "--script": {**_FILE, "help": "JSON Lines of steps instead of the random workload, '-': stdin"},
            "--privileged": {**_FLAG, "help": "answer as if to root: extensions, more providers"},
            "--receive-space": {"type": _number(256, whole=True), "metavar": "N", "help": "bytes of the clients' receive buffers"},
            "--duration": {**_SECONDS, "help": "stop after this many seconds (or 5m, 2h, 7d)"},
        },
        apart=dict.fromkeys(("--flows", "--rate", "--life"), ("--script",)),
    ),
}  # fmt: skip


class _PrintCompletion(argparse.Action):
    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,  # noqa: ARG002
        values: str | Sequence[Any] | None,
        option_string: str | None = None,  # noqa: ARG002
    ) -> None:
        from ._completion import completion  # noqa: PLC0415  # only needed here
        from ._output import Output  # noqa: PLC0415  # as above

        Output().lines(completion(parser, str(values)).splitlines())
        parser.exit(0)


def build_parser(first: str | None = None) -> argparse.ArgumentParser:
    """The parser of the whole command line; `command` of its result is the name of the command.

    Args:
        first: The first argument. If it is a command, the options of the others are left out.
    """
    parser = Parser(
        prog="nstat-async",
        usage="nstat-async COMMAND [options]",
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
    commands = parser.add_subparsers(dest="command", title="commands", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        sub = commands.add_parser(
            name,
            prog=f"nstat-async {name}",
            usage=f"nstat-async {command.usage(name)}",
            help=command.short,
            description=textwrap.fill(command.description, _COLUMNS, break_on_hyphens=False),
            epilog=f"example:\n  {command.example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        if first not in COMMANDS or first == name:
            command.configure(sub)
        sub.set_defaults(parser=sub)
    return parser
