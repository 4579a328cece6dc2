"""Everything that README and docs show is run: programs, commands, output, links.

- The ``python`` blocks of a page are run in order, in one namespace, in a directory that has
  ``examples``. A block that is followed by a ``text`` block prints exactly that. Coroutine
  functions that a block only defines are called, too.
- Where the documentation watches this machine, `nstat_async.backends` is replaced: it opens
  an emulated kernel with a small workload that ends after a moment.
- ``nstat-async`` in ``sh`` and ``console`` blocks is run in this process, for a moment; what
  a ``console`` block shows after it must come (``…``: and so on).
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import functools
import importlib
import inspect
import io
import itertools
import pathlib
import re
import shlex
import subprocess
import sys
import time

import anyio
import attrs
import fleet_living
import pytest

import nstat_async
from nstat_async import FlowAdded, FlowRemoved, Monitor, PollCompleted
from nstat_async._cli import main as command_line
from nstat_async._cli._arguments import COMMANDS, build_parser
from nstat_async.testing import EmulatedKernel, Workload

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<body>.*?)^(?P=indent)```[ ]*$", re.DOTALL | re.MULTILINE
)
# Each block of these pages is a program by itself, which this file runs as one.
SERVED = {"fleet"}  # they need a NATS server: tests/fleet/test_fleet_docs.py
PROGRAMS = {"aggregate", "history", "opentelemetry", "prometheus", "server"}
ELSEWHERE = "tests/integrations/test_integrations_docs.py"
# Pages that run with other people's packages (the extra ``frameworks``) are skipped where these are not installed.
NEEDED = {"web-frameworks": ("fastapi", "aiohttp", "django"), "pandas": ("pandas",)}
# Options of other people's programs: docker, kubectl, uvicorn, gunicorn, DuckDB, …
OTHER_PROGRAMS = {
    "--cap-add", "--cap-drop", "--cgroupns", "--config", "--network", "--preload", "--query", "--rm", "--security-opt", "--user",
    "--workers",
}  # fmt: skip
PARSERS = [
    build_parser(),
    *next(action for action in build_parser()._actions if action.dest == "command").choices.values(),
]
POLLS = 4
# macOS has no SOCK_SEQPACKET between processes: there the emulated kernel serves no path.
HAS_PACKETS = sys.platform != "darwin"


def name_of(page):
    return page.relative_to(ROOT).as_posix()


@attrs.frozen
class Block:
    language: str
    body: str
    line: int
    before: str  # the line of text above it
    expected: str | None  # of the `text` block that follows it at once


def blocks(page):
    text = page.read_text(encoding="utf-8")
    found = list(FENCE.finditer(text))
    result = []
    for match, following in itertools.zip_longest(found, found[1:]):
        gap = None if following is None else text[match.end() : following.start()]
        output = following["body"] if gap is not None and not gap.strip() and following["language"] == "text" else None
        above = text[: match.start()].rstrip().rpartition("\n")[2]
        result.append(Block(match["language"], match["body"], text.count("\n", 0, match.start()) + 1, above, output))
    return result


def pages_with(*languages):
    for page in PAGES:
        if any(block.language in languages for block in blocks(page)):
            yield pytest.param(page, id=name_of(page))


# --- the kernel that the documentation watches ---------------------------------------------------


@attrs.frozen
class Moment:
    """A backend whose kernel falls silent for good after a moment, so that every loop ends."""

    backend: object

    name = "emulated"

    def open(self, options):
        interval = options.interval and min(options.interval, 0.05)
        return Ending(self.backend.open(attrs.evolve(options, interval=interval)))


class Ending:
    """A feed that ends by itself, when there was something of everything."""

    def __init__(self, feed):
        self._feed = feed

    def __getattr__(self, name):
        return getattr(self._feed, name)

    async def run(self, sink):
        with anyio.move_on_after(120) as scope:
            await self._feed.run(Watched(sink, scope))


class Watched:
    def __init__(self, sink, scope):
        self._sink, self._scope = sink, scope
        self._polls = self._removed = 0
        self.room = sink.room

    def deliver(self, events):
        self._sink.deliver(events)
        self._polls += sum(isinstance(event, PollCompleted) for event in events)
        self._removed += sum(isinstance(event, FlowRemoved) for event in events)
        if self._polls >= POLLS and self._removed:
            self._scope.cancel()


def small_kernel():
    kernel = EmulatedKernel(clock=time.monotonic)
    Workload(kernel, rate=40, size=8, mean_life=0.1, seed=1).start()
    for number, state in enumerate(("listen", None)):
        flow = kernel.open_tcp(501, "curl", remote=None if state else ("198.51.100.7", 443), rx=number)
        if state:
            flow.listen(("0.0.0.0", 8080))
    return kernel


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A directory with the examples, on a machine whose kernel is the emulated one."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    kernels = []

    def auto():
        kernels.append(small_kernel())
        return Moment(kernels[-1].backend())

    def open_moment(_backend, options):
        return auto().open(options)

    monkeypatch.setattr("nstat_async.backends.auto", auto)
    monkeypatch.setattr("nstat_async.backends.SockDiag.open", open_moment)
    monkeypatch.setattr("nstat_async.backends.Kctl.open", open_moment)
    yield tmp_path
    for kernel in kernels:
        kernel.close()


# --- programs --------------------------------------------------------------------------------------


class Page:
    """Runs the python blocks of one page."""

    def __init__(self, page, place):
        self.page, self.place = page, place
        self.names = {"__name__": f"page_{page.stem}"}

    def run(self, block):
        before = dict(self.names)
        out = io.StringIO()
        source = "\n" * block.line + block.body  # so that a traceback has the page's own line
        with contextlib.redirect_stdout(out):
            code = compile(source, str(self.page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            waiting = eval(code, self.names)
            if waiting is not None:  # a fragment that awaits by itself
                asyncio.run(waiting)
            new = {name for name in self.names if self.names[name] is not before.get(name)}
            for name in sorted(new, key=block.body.find):
                function = self.names[name]
                here = inspect.iscoroutinefunction(function) and function.__module__ == self.names["__name__"]
                if here and not re.search(rf"(?<!def )\b{name}\b", block.body):
                    self.call(name, function)
        return out.getvalue()

    def call(self, name, function):
        known = {"path": str(self.place / "made.nstat")}
        needed = [p.name for p in inspect.signature(function).parameters.values() if p.default is p.empty]
        if not set(needed) <= set(known):
            return  # a part that a later block uses
        result = asyncio.run(function(**{each: known[each] for each in needed}))
        self.names[f"result_of_{name}"] = result


@pytest.mark.parametrize("page", [p for p in pages_with("python") if p.values[0].stem not in PROGRAMS | SERVED])
def test_the_programs_of_a_page_run_and_print_what_stands_there(page, place):
    for package in NEEDED.get(page.stem, ()):
        pytest.importorskip(package)
    runner = Page(page, place)
    for block in blocks(page):
        if block.language == "python" and not block.before.startswith("<!-- not run"):
            if "end_controls" in block.body and not HAS_PACKETS:
                continue  # a pair of datagram sockets has no end
            output = runner.run(block)
            if block.expected is not None:
                assert output == block.expected, f"{name_of(page)}:{block.line}"
    if page.name == "README.md":
        assert {type(event) for event in runner.names["result_of_record_and_replay"]} > {FlowAdded}
        assert [str(flow.local) for flow in runner.names["result_of_listening"]] == ["0.0.0.0:8080"]


def test_the_first_program_prints_the_lines_below_it(place, monkeypatch):
    recording = nstat_async.backends.Replay(str(ROOT / "examples" / "recordings" / "web-session.jsonl"))
    monkeypatch.setattr("nstat_async.backends.auto", lambda: recording)
    first, shown, *_ = blocks(ROOT / "README.md")
    assert (first.language, shown.language) == ("python", "text")
    assert shown.body in Page(ROOT / "README.md", place).run(first)


def test_programs_that_are_not_run_here_are_run_by_their_own_test():
    text = (ROOT / ELSEWHERE).read_text()
    assert all(f'"{name}"' in text for name in PROGRAMS)


def test_the_service_page_starts_work_again_that_may_succeed_later(place, monkeypatch):
    page = Page(DOCS / "how-to" / "service.md", place)
    for block in blocks(page.page):
        if block.language == "python":
            page.run(block)

    async def at_once(_seconds):
        await anyio.lowlevel.checkpoint()

    monkeypatch.setattr(anyio, "sleep", at_once)
    tries = []

    async def works_the_third_time():
        tries.append(1)
        if len(tries) < 3:
            reason = nstat_async.UnavailableReason.RESOURCE
            raise (nstat_async.BackendUnavailableError("kctl", reason, "no memory"), nstat_async.NstatError())[
                len(tries) - 1
            ]
        return "running"

    assert anyio.run(page.names["run_for_ever"], works_the_third_time) == "running"

    async def never():
        raise nstat_async.BackendUnavailableError("kctl", nstat_async.UnavailableReason.PLATFORM, "no Darwin")

    with pytest.raises(nstat_async.BackendUnavailableError):
        anyio.run(page.names["run_for_ever"], never)


def test_the_service_page_watches_with_several_consumers(place):
    page = Page(DOCS / "how-to" / "service.md", place)
    page.run(next(block for block in blocks(page.page) if block.language == "python"))
    lines = []
    anyio.run(page.names["watch"], lines.append)
    assert any("final=True" in line for line in lines), "a closed flow was logged"
    assert any(not line.startswith(("tcp", "udp", "quic")) for line in lines), "a table was logged"


# --- commands --------------------------------------------------------------------------------------


def commands(page):
    """(command, what it prints or None) for each line with nstat-async."""
    for block in blocks(page):
        if block.language not in {"sh", "console"} or block.before.startswith("<!--"):
            continue
        lines = block.body.replace("\\\n", " ").splitlines()
        for at, line in enumerate(lines):
            if block.language == "console":
                if not line.startswith("$ "):
                    continue
                shown = list(itertools.takewhile(lambda each: not each.startswith("$ "), lines[at + 1 :]))
                yield line.removeprefix("$ "), "\n".join(shown) or None, block.line + 1 + at
            elif line.strip() and not line.startswith("#"):
                yield line, None, block.line + 1 + at


def parts(command):
    """The nstat-async commands of a command line: their arguments, and whether they go to a file or pipe."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    words, result = list(lexer), []
    for separator, group in itertools.groupby(words, key=lambda word: set(word) <= set("|&;<>")):
        command_words = list(group)
        if not separator and pathlib.PurePosixPath(command_words[0]).name == "nstat-async":
            result.append(command_words[1:])
    return result


def capped(arguments):
    """The same for a moment: recordings are whole, a kernel is watched for a moment.

    `publish` ends by itself: the kernel does, and then the server has all of its events, however busy the machine is.
    """
    options = build_parser().parse_args(arguments)
    live = options.command in {"watch", "processes", "record", "top", "emulate", "serve"}
    live = live or (options.command == "history" and options.record)
    if live and not str(getattr(options, "backend", "")).startswith("replay:"):
        arguments = [*arguments, "--duration", "0.05"]
    if options.command == "replay":
        arguments = [*arguments, "--speed", "1000"] if options.speed else arguments
    return options, arguments


def run_here(arguments, place):
    """(status, output) of one command line in this process."""
    options, arguments = capped(arguments)
    named = [getattr(options, word, None) for word in ("file", "script")]
    for path in itertools.chain.from_iterable(each if isinstance(each, list) else [each] for each in named):
        if path not in {None, "-"} and options.command not in {"record", "history"} and not pathlib.Path(path).exists():
            # A recording of the reader's own.
            made = place / "own.nstat"
            if not made.exists():
                assert run_here(["record", str(made), "--backend", "emulated"], place)[0] == 0
            arguments = [str(made) if each == path else each for each in arguments]
            if options.command in {"replay", "messages"} and options.kernel:
                arguments = [each for each in arguments if each not in {"--kernel", options.kernel}]
    if any("nats://" in each for each in arguments):
        return run_with_nats(arguments, place)
    if not HAS_PACKETS and (options.command == "emulate" or str(getattr(options, "backend", "")).startswith("unix:")):
        return 0, ""
    if options.command == "serve":
        arguments = [str(place / "s.sock") if each == options.unix_socket else each for each in arguments]
        arguments += [] if options.unix_socket else ["--port", "0"]
    if options.command == "emulate":
        arguments = [str(place / "k.sock") if each == options.listen else each for each in arguments]
    if str(getattr(options, "backend", "")).startswith("unix:"):
        kernel = small_kernel()
        with contextlib.closing(kernel), kernel.serve_unix(str(place / "u.sock")):
            return run_main([f"unix:{place / 'u.sock'}" if each == options.backend else each for each in arguments])
    if options.command == "top" and not options.json:
        arguments = [*arguments, "--json"]  # the screen needs a terminal: tests/cli looks at it
    return run_main(arguments)


def run_with_nats(arguments, place):
    """The same with a NATS server of its own."""
    if fleet_living.BINARY is None:
        pytest.skip("nats-server is not installed")
    with fleet_living.Server(place) as server:
        if arguments[0] == "top":
            arguments = [*arguments, "--json"]
        return run_main([re.sub(r"nats://[\d.:]+", server.url, each) for each in arguments])


def run_main(arguments):
    out = io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True)
    err = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = command_line(arguments)
    return status, out.buffer.getvalue().decode() + err.getvalue()


@pytest.mark.parametrize("page", list(pages_with("sh", "console")))
def test_the_commands_of_a_page_work_and_print_what_stands_there(page, place):
    for command, shown, line in commands(page):
        for arguments in parts(command):
            where = f"{name_of(page)}:{line}: {command}"
            if (
                arguments[:1] in (["--version"], ["--help"])
                or "--help" in arguments
                or "--print-completion" in arguments
            ):
                assert run_main(arguments)[0] == 0, where
                continue
            status, output = run_here(arguments, place)
            if arguments[0] != "doctor":  # which says what this machine offers, by its status too
                assert status == 0, f"{where}\n{output}"
            if shown is not None and re.search(r"replay|examples/recordings", command):
                beginning, more, _ = shown.partition("…")
                assert output.startswith(beginning) if more else output.rstrip("\n") == shown, where


def test_every_command_has_an_example_that_works(place):
    for name, command in COMMANDS.items():
        for line in command.example.splitlines():
            for arguments in parts(line.strip()):
                assert arguments[0] == name or name in {"emulate", "publish"}
                status, output = run_here(arguments, place)
                assert status == 0 or name == "doctor", f"{line}\n{output}"


def test_python_commands_of_the_documentation_name_files_that_exist():
    found = 0
    for page in PAGES:
        for command, _, line in commands(page):
            for path in re.findall(r"\b(?:examples|benchmarks|tests)/[\w./-]+", command):
                assert (ROOT / path).exists(), f"{name_of(page)}:{line}: {path}"
                found += 1
    assert found > 5


# --- the README's set-up, links, the whole -------------------------------------------------------------


def test_the_check_script_extracts_exactly_the_readmes_test_command():
    script = (ROOT / ".ci" / "run").read_text() if (ROOT / ".ci").exists() else None
    if script is None:
        pytest.skip("not a checkout")
    (extraction,) = re.findall(r"^command=\$\((.*)\)$", script, re.MULTILINE)
    done = subprocess.run(["sh", "-c", extraction], cwd=ROOT, capture_output=True, text=True, check=True)
    (block,) = [b for b in blocks(ROOT / "README.md") if b.before == "<!-- test-command -->"]
    assert done.stdout == block.body
    assert block.body.count("\n") == 1, "one line"
    assert "pytest" in block.body


LINK = re.compile(r"(?<!\\)\]\(([^)\s]+)\)")


def anchors(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE):
        yield re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip())


@pytest.mark.parametrize("page", [pytest.param(page, id=name_of(page)) for page in PAGES])
def test_every_link_leads_to_a_page_and_a_heading_that_exist(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in LINK.findall(text):
        if target.startswith(("http:", "https:", "mailto:")):
            continue
        path, _, fragment = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{name_of(page)} -> {target}"
        assert DOCS in found.parents or page.name == "README.md", f"{target} is not on the site"
        if fragment:
            assert fragment in set(anchors(found)), f"{name_of(page)} -> {target}"


def test_every_page_is_in_the_navigation_and_every_entry_is_a_page():
    path = ROOT / "mkdocs.yml"
    if not path.exists():
        pytest.skip("not a checkout")
    listed = re.findall(r": ([\w./-]+\.md)$", path.read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(page.relative_to(DOCS).as_posix() for page in PAGES[1:])


def test_files_that_pages_name_in_passing_exist():
    for page in PAGES:
        text = FENCE.sub("", page.read_text(encoding="utf-8"))
        for path in re.findall(r"`((?:tests|docs|examples|benchmarks|fuzz|nstat_async)/[\w./-]+)`", text):
            root = pathlib.Path(nstat_async.__file__).parents[1] if path.startswith("nstat_async") else ROOT
            assert (root / path).exists(), f"{name_of(page)}: {path}"


@functools.cache
def _scripts():
    """The text of all programs beside the library, which have options of their own."""
    return "".join(path.read_text() for path in (*ROOT.glob("benchmarks/*.py"), *ROOT.glob("tests/**/*.py")))


def _resolve(name):
    """What a dotted name stands for; the error of what is not there."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        owner, _, last = name.rpartition(".")
        return getattr(_resolve(owner), last)


@pytest.mark.parametrize(
    "page", [pytest.param(page, id=name_of(page)) for page in PAGES if page.name != "changelog.md"]
)
def test_the_names_and_options_that_a_page_mentions_exist(page):
    """The changelog may speak of what is gone."""
    text = page.read_text(encoding="utf-8")
    for name in set(re.findall(r"\bnstat_async(?:\.\w+)+", text)):
        with contextlib.suppress(ImportError):  # of an extra that is not installed
            _resolve(name)
    ours = {option for parser in PARSERS for option in parser._option_string_actions}
    mentioned = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)) - ours - OTHER_PROGRAMS
    assert {option for option in mentioned if f'"{option}"' not in _scripts()} == set()


def test_the_speed_of_the_readme_is_that_of_the_speed_page():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    table = readme.partition("## Speed")[2].partition("## ")[0]
    page = (DOCS / "speed.md").read_text(encoding="utf-8")
    figures = re.findall(
        r"\d\.\d+(?: \([\d.]+\u2013[\d.]+\))?", "\n".join(line for line in table.splitlines() if line[:1] == "|")
    )
    assert len(figures) > 10
    assert [figure for figure in figures if not re.search(rf"(?<![\d.]){re.escape(figure)}(?![\d.])", page)] == []


def test_every_example_is_run_by_a_test():
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py") if path != pathlib.Path(__file__))
    for path in (ROOT / "examples").iterdir():
        if path.suffix == ".py" or path.name == "testsuite":
            assert re.search(rf"\b{path.stem}\b", tests), path


def test_a_monitor_opens_the_backend_that_auto_gives(place):
    """What the other tests rest on."""

    async def main():
        async with Monitor() as monitor:
            return monitor.capabilities.backend, [event async for event in monitor]

    backend, events = anyio.run(main)
    assert backend == "emulated"
    assert any(isinstance(event, FlowRemoved) for event in events)
