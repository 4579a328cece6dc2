"""Recordings of all formats, a few of whose records are something else."""

from __future__ import annotations

import contextlib
import io
import json
import struct
from typing import Any

from choices import NUMBERS, ROOT, Choices, looked_at
from sockdiag_fakes import FakeKernel, FakeSocket
from virtual import VirtualMonitor

from nstat_async import MonitorOptions, NstatError, sockdiag
from nstat_async._io.follow import Follower
from nstat_async._io.player import Player, protocol_of
from nstat_async._io.record import RecordedCore
from nstat_async._io.rerun import rerun_of
from nstat_async.recording import JsonLinesWriter, Recording, RecordKind, copy, open_recording
from nstat_async.sockdiag import TcpInfo
from nstat_async.testing import EmulatedKernel

KERNEL = "xnu-11417.121.6"
_FILE, _HEAD = 16, 20
"""Bytes of the native format's header, and of the head of each of its records."""
_FIELDS = ((0, 2), (2, 1), (3, 1), (4, 4), (8, 4), (12, 8))
"""Where a head has marker, kind, flags, length, client and time."""
_MOST = 8
"""Changed records of a recording: what comes behind many has little left to be read as."""
_PLAYED = 4
"""One binary recording in so many is played, not only read."""


def _lines(file: io.BytesIO) -> list[dict[str, Any]]:
    """A recording as JSON Lines, taken apart."""
    file.seek(0)
    text = io.BytesIO()
    with open_recording(file) as source, JsonLinesWriter(text, source.info) as writer:
        copy(source, writer)
        writer.flush()
        return [json.loads(line) for line in text.getvalue().splitlines()]


def linux_life(kernel: FakeKernel) -> FakeKernel:
    """Three sockets, of which one moves bytes and one ends."""
    for number in (1, 2, 3):
        kernel.sockets[number] = FakeSocket(number, local_port=4000 + number, inode=number)
        kernel.owners[number] = 100 + number
    kernel.start()
    kernel.sockets[1].info[TcpInfo.BYTES_RECEIVED] = 1000
    kernel.wait(1.0)
    kernel.close(2)
    kernel.wait(1.0)
    return kernel


def _linux_run() -> io.BytesIO:
    file, options = io.BytesIO(), MonitorOptions()
    core = RecordedCore(
        sockdiag.Session(options, kernel="6.18.0"), Recording(file), options, now=100.0, epoch_offset=1e9
    )
    linux_life(FakeKernel(core))
    core.close()
    return file


def _darwin_run() -> io.BytesIO:
    file, kernel = io.BytesIO(), EmulatedKernel(KERNEL)
    made: list[RecordedCore] = []

    def record(session: Any, options: MonitorOptions) -> RecordedCore:
        made.append(RecordedCore(session, Recording(file), options, now=float(kernel.now), epoch_offset=1e9))
        return made[0]

    monitor = VirtualMonitor(kernel, wrap=record)
    flow = kernel.open_tcp(pid=501, name="curl", remote="192.0.2.7:443")
    flow.transfer(rx=1000, tx=200)
    monitor.run(2.5)
    flow.close()
    monitor.run(1.0)
    made[0].close()
    return file


RUNS = (_linux_run(), _darwin_run())
"""Of this version: they are run again."""
_OLD = [path.read_bytes() for path in sorted((ROOT / "tests" / "vectors" / "recordings").glob("*.jsonl"))]
"""Of the first version: they are followed."""


def _with_text(line: Any) -> tuple[Any, str]:
    """A line of a recording, as a tree and as text."""
    return line, json.dumps(line) + "\n"


RECORDED = [list(map(_with_text, lines)) for lines in map(_lines, (*RUNS, *map(io.BytesIO, _OLD)))]


def _native(data: bytes) -> list[bytes]:
    """The records of a file of the project's own format; the first piece is the file's beginning."""
    pieces, at = [], _FILE
    while at < len(data):
        end = at + _HEAD + int.from_bytes(data[at + 4 : at + 8], "little")
        pieces.append(data[at:end])
        at = end
    return [data[:_FILE] + pieces[0], *pieces[1:]]


def _first_version(pieces: list[bytes]) -> list[bytes]:
    """What the first version would have written of it: requests and datagrams."""
    beginning = pieces[0][:8] + b"\1\0" + pieces[0][10:]
    return [beginning, *(piece for piece in pieces[1:] if piece[2] <= 2)]


def _bin(pieces: list[bytes]) -> list[bytes]:
    """The datagrams of it as a recording of libntstat; its first is no beginning of a file."""
    datagrams = [piece[_HEAD:] for piece in pieces[1:] if piece[2] in {2, 7}]
    return [b"", *(struct.pack("<II", number, len(data)) + data for number, data in enumerate(datagrams))]


_OWN = [_native(file.getvalue()) for file in RUNS]
BINARY = [*_OWN, *map(_first_version, _OWN), _bin(_OWN[1])]


def records(data: bytes) -> int:
    """A recording, a few of whose values are something else: read and played, or said to be damaged."""
    choices, changed = Choices(data), 0
    lines = list(choices.pick(RECORDED))
    while not choices.over and changed < _MOST:
        changed += 1
        at = choices.byte() % len(lines)
        if choices.rarely():
            lines.insert(choices.byte() % len(lines), lines[at])
        else:
            lines[at] = _with_text(choices.spoiled(lines[at][0]))
    text = "".join(text for _, text in lines)
    with contextlib.suppress(NstatError):
        _play(text.encode("utf-8", "surrogatepass"))
    return changed


def _play(data: bytes) -> None:
    options = MonitorOptions()
    with open_recording(io.BytesIO(data), kernel=KERNEL) as file:
        protocol = protocol_of(file.info.protocol)
        if protocol is not None:
            player: Player = rerun_of(file.info, protocol, options) or Follower(file.info, protocol, options, None)
            player.play(file)
            player.finish()
            looked_at(player.take_events())


def _read(data: bytes) -> list[Any]:
    with open_recording(io.BytesIO(data), kernel=KERNEL) as file:
        return list(file)


_WHOLE = [_read(b"".join(pieces)) for pieces in BINARY]


def _broken(piece: bytes, choices: Choices) -> bytes:
    """A record with something else in its head or its body, cut off, or twice."""
    data, what = bytearray(piece), choices.byte() % 8
    if what <= 2:
        at, size = choices.pick(_FIELDS)
        data[at : at + size] = (choices.pick(NUMBERS) & (1 << 8 * size) - 1).to_bytes(size, "little")
    elif what <= 5 and data:
        data[(choices.byte() | choices.byte() << 8) % len(data)] = choices.byte()
    elif what == 6:
        del data[choices.byte() % (len(data) + 1) :]
    else:
        data *= 2
    return bytes(data)


def binary(data: bytes) -> int:
    """A recording of the project's own format or of libntstat's: what lies before the damage is read as ever."""
    choices = Choices(data)
    number = choices.byte() % len(BINARY)
    pieces, played = list(BINARY[number]), choices.byte() % _PLAYED == 0
    first, changed = len(pieces), 0
    while not choices.over and changed < _MOST:
        changed += 1
        at = choices.byte() % len(pieces)
        first = min(first, at)
        pieces[at] = _broken(pieces[at], choices)
    text = b"".join(pieces)
    with contextlib.suppress(NstatError):
        found = _read(text)
        if first > 0:
            known = _WHOLE[number][: first - 1]
            assert found[: len(known)] == known
        assert sum(len(record.data) for record in found if record.kind is not RecordKind.DAMAGE) <= len(text)
    if played:
        with contextlib.suppress(NstatError):
            _play(text)
    return changed
