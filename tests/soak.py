"""Random worlds on both systems for as long as you like: is every flow added once, removed once, and counted to the byte?

    python -m tests.soak                       # an hour
    python -m tests.soak --minutes 5 --seed 7
    python -m tests.soak --only darwin/7/123   # one world again

A world is a kernel that is played, sockets that live on it, and what goes wrong; time is its own. In the end the
library's picture must be the kernel's truth, or it must have said what it missed. The first world that is not right
is printed with its number, and the exit status is 1.

Hypothesis looks for the smallest script that breaks something (``tests/property``); this looks through many long ones.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent
sys.path[:0] = [str(TESTS.parent), *(str(TESTS / name) for name in (".", "property", "sockdiag", "ebpf"))]

import programs_lives
from kernels import KERNELS
from sockdiag_fakes import FakeSocket, flow_events, traffic
from sockdiag_world import World
from test_kernel_truth import JUMPS, PAUSES, Machine, check, settle
from virtual import VirtualMonitor

from nstat_async import EventsLost, Flow, FlowAdded, FlowRemoved, FlowUpdated, LossCause, NstatError, Provider
from nstat_async.sockdiag import SocketState, TcpInfo
from nstat_async.sockdiag._constants import IPPROTO_TCP
from nstat_async.testing import EmulatedKernel

Step = tuple[Any, ...]

# --- Darwin ---------------------------------------------------------------------------------------


def darwin_life(dice: random.Random) -> Step:
    """What a socket does, as `test_kernel_truth.Machine` takes it."""
    which = dice.randrange(200)
    amount = dice.choice((0, 1, 1448, 100_000, 1 << 33))
    return dice.choice((
        ("open", dice.randrange(5), dice.random() < 0.5),
        ("open", dice.randrange(5), True),
        ("transfer", which, amount, dice.choice((0, 1, 1448))),
        ("transfer", which, 0, amount),
        ("connect", which),
        ("bind", which),
        ("listen", which),
        ("accept", which),
        ("hand over", which),
        ("close", which),
        ("close", which),
        ("crowd", dice.randint(1, 40)),
        ("wait", dice.choice(PAUSES)),
        ("poll",),
    ))  # fmt: skip


def darwin_trouble(dice: random.Random) -> Step:
    """What a kernel, or a clock, does wrong."""
    probability = dice.choice((0.0, 0.3, 1.0))
    return dice.choice((
        ("fault", "lose_announcements", probability),
        ("fault", "lose_batches", probability),
        ("fault", "lose_final_reports", probability),
        ("fault", "lose_goodbyes", probability),
        ("fault", "delay_goodbyes", dice.choice((0.0, 0.3, 4.0))),
        ("fault", "full", dice.random() < 0.5),
        ("fault", "mbufs", dice.choice((None, 0, 3))),
        ("end control", dice.random() < 0.5),
        ("garbage", dice.randbytes(dice.randrange(80))),
        ("clock", dice.choice(JUMPS)),
        ("ticks", dice.choice(JUMPS)),
    ))  # fmt: skip


def darwin(dice: random.Random) -> int:
    """One world of the Darwin core; how many events it had."""
    badly = dice.choice((0.0, 0.05, 0.3))
    script = [
        darwin_trouble(dice) if dice.random() < badly else darwin_life(dice) for _ in range(dice.randint(20, 300))
    ]
    machine = Machine(EmulatedKernel(dice.choice(KERNELS), seed=dice.randrange(1 << 16)))
    machine.kernel.faults.reply_delay = dice.choice((0.0, 0.0, 0.02, 0.4))
    machine.do_crowd(dice.choice((0, 5, 60)))
    ways = {"discovery": dice.choice(("poll", "announce")), "interval": dice.choice((None, 0.2, 1.0))}
    monitor = machine.monitor = VirtualMonitor(machine.kernel, **ways)
    for step in script:
        machine.do(step)
    settle(machine, monitor)
    if monitor.session.failure is None:
        check(machine, monitor)
    else:  # a control that cannot be opened for long is given up, and says so
        assert isinstance(monitor.session.failure, NstatError)
    return sum(monitor.picture.events.values())


# --- Linux ----------------------------------------------------------------------------------------


CLOSING = SocketState.ESTABLISHED, SocketState.LAST_ACK, SocketState.CLOSE
Connection = tuple[str, int]
"""The id of its socket's first flow, and its local port."""


def connection_of(sock: FakeSocket) -> Connection:
    return f"c{sock.cookie:x}", sock.local_port


def connection_of_flow(flow: Flow) -> Connection:
    return flow.id.partition(".")[0], flow.local.port


class Accounted(World):
    """Sockets whose counters only grow until they have another connection, and what each connection moved in the end."""

    def __init__(self) -> None:
        super().__init__()
        self.got: Counter[int] = Counter()
        """By cookie, what a socket received, without the byte that a FIN counts as."""
        self.segments: Counter[int] = Counter()
        """By cookie, in how many segments: each has a byte at least."""
        self.moved: dict[Connection, int] = {}
        """What a connection of TCP received when it ended."""
        self.dissolved: set[Connection] = set()
        """Those of which the kernel forgot that, because their sockets connected again."""

    def grow(self, number: int, amount: int) -> None:
        """A socket receives and sends, or hears that the other side hung up."""
        sock = self.socket(number)
        if sock is None or sock.state == SocketState.CLOSE_WAIT:
            return
        self.got[sock.cookie] += amount
        self.segments[sock.cookie] += -(-amount // 1448)
        hung_up = not amount and sock.protocol == IPPROTO_TCP
        if hung_up:
            sock.state = SocketState.CLOSE_WAIT
        self.count(sock, fin=int(hung_up))

    def count(self, sock: FakeSocket, **fins: int) -> None:
        got, segments = self.got[sock.cookie], self.segments[sock.cookie]
        sock.info = traffic(got, got, **fins) | {TcpInfo.DATA_SEGS_IN: segments, TcpInfo.DATA_SEGS_OUT: segments}

    def close(self, number: int, tell: bool) -> None:
        sock = self.socket(number)
        if sock is not None and sock.protocol == IPPROTO_TCP:
            self.moved[connection_of(sock)] = self.got[sock.cookie]
            self.count(sock, fin=1, fin_sent=1)  # both sides have hung up
        super().close(number, tell)

    def caught(self, number: int, state: int, soon: bool) -> None:
        """A dump has the row of a connection that is just being closed; `soon`: its removal is read before that row."""
        sock = self.socket(number)
        if sock is None or sock.protocol != IPPROTO_TCP:
            return
        before = sock.local_port, sock.state
        sock.local_port, sock.state = 0, state  # it has given back its port

        def end() -> None:
            sock.local_port, sock.state = before
            self.close(number, True)

        self.kernel.during_dump = end if soon else None
        self.kernel.poll()
        if not soon:
            end()

    def reconnect(self, number: int, remote_port: int) -> None:
        """A socket dissolves its connection, and has another one, which gets a port of its own."""
        sock = self.socket(number)
        if sock is not None and sock.protocol == IPPROTO_TCP:
            self.moved[connection_of(sock)] = self.got[sock.cookie]
            self.dissolved.add(connection_of(sock))
            sock.local_port, sock.remote_port = 10_000 + len(self.moved), remote_port
            sock.state = SocketState.ESTABLISHED
            self.got[sock.cookie] = self.segments[sock.cookie] = 0
            self.count(sock)

    def open(self, number: int, protocol: int, inode: int) -> None:
        new = self.socket(number) is None
        super().open(number, protocol, inode)
        if new:
            self.got[self.used] = self.segments[self.used] = 1

    def do(self, name: str, *arguments: int) -> None:
        if name in {"grow", "caught", "reconnect"}:
            getattr(self, name)(*arguments)
        else:
            super().do(name, *arguments)


def linux_step(dice: random.Random, badly: float) -> Step:
    """What a socket does, or a kernel that loses notifications."""
    which = dice.randint(1, 40)
    if dice.random() < badly:
        return dice.choice((("overrun",), ("close", which, False), ("during", which)))
    return dice.choice((
        ("open", which, dice.choice((6, 6, 17)), dice.randint(0, 3)),
        ("open", which, 6, dice.randint(0, 3)),
        ("grow", which, dice.choice((1, 1448, 1 << 20))),
        ("grow", which, dice.choice((1, 1448))),
        ("grow", which, 0),
        ("inode", which, dice.randint(0, 3)),
        ("close", which, True),
        ("caught", which, dice.choice(CLOSING), dice.random() < 0.5),
        ("reconnect", which, dice.choice((80, 81))),
        ("wait", dice.choice((0.1, 0.3, 1.0, 2.5))),
    ))  # fmt: skip


def linux(dice: random.Random) -> int:
    """One world of the Linux core; how many events it had."""
    world, badly = Accounted(), dice.choice((0.0, 0.05, 0.3))
    for _ in range(dice.randint(20, 500)):
        world.do(*linux_step(dice, badly))
        world.kernel.run()
    world.kernel.during_dump = None
    for _ in range(5):
        world.kernel.wait(1.5)
    check_linux(world)
    return len(world.kernel.events)


def check_linux(world: Accounted) -> None:
    """Every flow lived once, none is left of what is gone, and final counts are the truth."""
    assert world.kernel.session.settled(world.kernel.now)
    live: dict[str, int] = {}
    ended: set[str] = set()
    for event in flow_events(world.kernel.events):
        name = event.flow.id
        assert name not in ended, f"{name} comes back"
        assert (name in live) is not isinstance(event, FlowAdded), f"{name}: {event}"
        now = (event.counts.rx_bytes or 0) if event.counts else 0
        if isinstance(event, FlowUpdated):
            assert now >= live[name], f"{name} shrinks: {event}"
        live[name] = now
        if isinstance(event, FlowRemoved):
            del live[name]
            ended.add(name)
            moved = world.moved.get(connection_of_flow(event.flow))
            if is_said_exactly(event) and moved is not None:
                assert abs(now - moved) <= (event.uncertainty or 0), f"{name} moved {moved}: {event}"
    known = dict(world.kernel.session.flows())
    assert {flow.id for flow in known} == set(live)
    sockets = sorted(f"c{cookie:x}" for cookie in world.kernel.sockets)
    assert sorted(flow.id.partition(".")[0] for flow in known) == sockets
    counts = {connection_of_flow(flow): counts for flow, counts in known.items()}
    for cookie, sock in world.kernel.sockets.items():
        if sock.protocol == IPPROTO_TCP:
            assert counts[connection_of(sock)].rx_bytes == world.got[cookie], f"c{cookie:x} has {world.got[cookie]}"
    check_losses(world)


def is_said_exactly(event: FlowRemoved) -> bool:
    """Whether the counts of an end are final, but for a byte that it says."""
    return event.final or event.uncertainty is not None


def check_losses(world: Accounted) -> None:
    """Every connection ended once, and with its counts, or was said to be lost; only a dissolved one may never be seen."""
    lost = Counter(event.cause for event in world.kernel.events if isinstance(event, EventsLost))
    removed = [event for event in world.kernel.events if isinstance(event, FlowRemoved)]
    ends = [event for event in removed if event.flow.provider is Provider.TCP]
    seen = Counter(connection_of_flow(event.flow) for event in ends)
    assert seen.keys() <= world.moved.keys(), seen.keys() - world.moved.keys()
    assert seen.total() == len(seen), [connection for connection, times in seen.items() if times > 1]
    exact = {connection_of_flow(event.flow) for event in ends if is_said_exactly(event)}
    vague = world.moved.keys() - exact - (world.dissolved - seen.keys())
    assert lost[LossCause.KERNEL_BUFFER] or len(vague) <= lost[LossCause.FINAL_COUNTS], vague


# --- all of them ----------------------------------------------------------------------------------

WORLDS = {"darwin": darwin, "linux": linux, "ebpf": programs_lives.play}


def soak(seconds: float, seed: int, *, limit: int | None = None, show: Any = print) -> tuple[Counter[str], str | None]:
    """Play worlds until the time is over, or one is wrong: how many worlds and events there were, and which was wrong.

    Args:
        seconds: How long.
        seed: Of all worlds.
        limit: At most so many.
        show: Called with a line each minute, and with what was wrong.
    """
    counted: Counter[str] = Counter()
    begin = said = time.monotonic()
    number = 0
    while time.monotonic() < begin + seconds and number != limit:
        system = list(WORLDS)[number % len(WORLDS)]
        name = f"{system}/{seed}/{number}"
        try:
            counted["events"] += WORLDS[system](random.Random(name))
        except Exception as error:
            show(f"{name}: {error!r}")
            return counted, name
        number += 1
        counted[system] += 1
        if time.monotonic() > said + 60:
            said = time.monotonic()
            show(f"{(said - begin) / 60:.0f} min: {dict(counted)}")
    return counted, None


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0, help="how long (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", metavar="WORLD", help="play this one again, and show where it went wrong")
    arguments = parser.parse_args()
    if arguments.only:
        WORLDS[arguments.only.split("/")[0]](random.Random(arguments.only))
        return 0
    counted, wrong = soak(arguments.minutes * 60, arguments.seed)
    print(", ".join(f"{count:,} {what}" for what, count in sorted(counted.items())))
    return wrong is not None


if __name__ == "__main__":
    sys.exit(main())
