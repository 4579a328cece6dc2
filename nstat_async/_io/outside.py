"""Network namespaces from outside: the files in ``/proc/PID/net``, which every user may read.

Entering a namespace needs CAP_SYS_ADMIN, and following ``/proc/PID/ns/net`` needs the right to inspect the process. The
files in ``/proc/PID/net`` need neither (``proc_tgid_net_lookup``): they show the process's network namespace, and a file has
the same inode for all processes of it. Only ``hidepid=`` hides them.

For a table of TCP sockets the kernel walks over the hash table of *all* namespaces, which takes several milliseconds if
that is large. So a table is not read if the kernel counts no socket for it (``sockstat``), and each namespace is read as
often as its part of `SHARE` allows.
"""

from __future__ import annotations

import time

import attrs

from ..sockdiag import FoundNamespace, NetworkNamespace, SocketTablesAnswer, SocketTablesRequest, TableRow
from ..sockdiag._setup import MAX_NAMESPACES
from .cgroups import Hierarchy, cgroup_of_process, hierarchy_here
from .linux import network_at
from .proctables import read_tables

SHARE = 0.05
"""Share of a CPU for the tables of all of them. The first reading of each is not limited."""
ROW_SECONDS = 10e-6
"""CPU time that the event loop needs for a row."""
MOST_ROWS = 16_384
"""Sockets of a namespace that are reported."""
AT_ONCE = 2048
"""Rows in one answer: a recording writes them in about 12 ms."""
PIDS = 8
"""Processes of a namespace that are remembered: those with the lowest pids."""
ROUNDS = 2
"""Rounds in a row without a process of a namespace, after which it is gone: processes may change while they are listed."""


@attrs.define(eq=False)
class _Met:
    """A namespace that the present round has found."""

    label: str
    pids: list[int] = attrs.field(factory=list)
    cgroups: set[int] = attrs.field(factory=set)
    """Cgroups of its processes: at most two, which is enough to know that there is not only one."""


@attrs.define(eq=False)
class _Space:
    """A namespace that is watched."""

    network: int
    pids: tuple[int, ...]
    absences: int = 0
    left: list[TableRow] = attrs.field(factory=list)
    """Rows that were read and are in no answer yet."""


class Outside:
    """The namespaces that are watched from outside, and their tables. Several threads may read tables, but one for each namespace."""

    def __init__(self) -> None:
        self.beyond = 0
        """How many namespaces are not watched because there are too many."""
        self.cgroups: tuple[tuple[int, int], ...] = ()
        """Namespaces whose visible processes are in one cgroup, and the number of that."""
        self._spaces: dict[int, _Space] = {}
        """By their number in the session."""
        self._met: dict[int, _Met] = {}
        self._hierarchy: Hierarchy | None = None

    def __len__(self) -> int:
        return len(self._spaces)

    @property
    def networks(self) -> frozenset[int | None]:
        """The watched namespaces as numbers of `network_of_this_thread`."""
        return frozenset(space.network for space in list(self._spaces.values()))

    # -- rounds through all processes

    def begin_round(self) -> None:
        """Begin to list all processes."""
        self._met, self._hierarchy = {}, hierarchy_here()

    def meet(self, pid: int, network: int, label: str) -> None:
        """Note a process in a namespace that is not entered; processes come in the order of their pids."""
        met = self._met.get(network)
        if met is None:
            met = self._met[network] = _Met(label)
        if len(met.pids) < PIDS:
            met.pids.append(pid)
        if len(met.cgroups) < 2:
            cgroup = cgroup_of_process(pid, self._hierarchy)
            met.cgroups.update(() if cgroup is None else (cgroup,))

    def end_round(self, entered: frozenset[int | None], first: int) -> tuple[list[FoundNamespace], list[int]]:
        """The namespaces that came, and the numbers of those that are gone.

        Args:
            entered: Namespaces that are watched from inside.
            first: Number of the first namespace that came.
        """
        met = {network: each for network, each in self._met.items() if network not in entered}
        known = {space.network: number for number, space in self._spaces.items()}
        gone, found = [], []
        for network, number in known.items():
            space, here = self._spaces[number], met.get(network)
            if here is not None and not set(space.pids).isdisjoint(here.pids):
                space.pids, space.absences = tuple(here.pids), 0
                continue
            space.absences += 1
            # With other processes only it is another namespace: the kernel uses inodes of /proc again.
            if here is not None or network in entered or space.absences >= ROUNDS:
                gone.append(number)
                del self._spaces[number]
        new = [network for network in met if network not in known or known[network] in gone]
        room = MAX_NAMESPACES - len(self._spaces)
        self.beyond = max(0, len(new) - room)
        for number, network in enumerate(new[:room], first):
            self._spaces[number] = _Space(network, tuple(met[network].pids))
            found.append(FoundNamespace(number, NetworkNamespace(met[network].label), entered=False))
        self.cgroups = tuple(
            (number, cgroup)
            for number, space in self._spaces.items()
            if (cgroup := _only(met[space.network].cgroups if space.network in met else set()))
        )
        return found, gone

    def release(self, number: int) -> None:
        """Do not watch a namespace any more."""
        self._spaces.pop(number, None)

    # -- tables

    def tables(self, request: SocketTablesRequest) -> SocketTablesAnswer:
        """The tables of a namespace, or more rows of the last reading."""
        space = self._spaces.get(request.namespace)
        answer = SocketTablesAnswer(request.namespace, unread=space is None)
        if space is None:
            return answer
        if not request.rest:
            began = time.thread_time()
            answer = self._read(space, request)
            spent = time.thread_time() - began + len(space.left) * ROW_SECONDS
            answer = attrs.evolve(answer, pause=spent * len(self._spaces) / SHARE)
        rows, space.left = tuple(space.left[:AT_ONCE]), space.left[AT_ONCE:]
        return attrs.evolve(answer, rows=rows, more=bool(space.left))

    def _read(self, space: _Space, request: SocketTablesRequest) -> SocketTablesAnswer:
        space.left = []
        for pid in space.pids:
            net = f"/proc/{pid}/net"
            if network_at(net) != space.network:
                continue
            answer = read_tables(net, request)
            if network_at(net) == space.network:  # the process still exists, and in the same namespace
                space.left = list(answer.rows[:MOST_ROWS])
                return attrs.evolve(answer, cut=answer.cut or len(answer.rows) > MOST_ROWS)
        return SocketTablesAnswer(request.namespace, unread=True)


def _only(cgroups: set[int]) -> int:
    """The only cgroup; 0 if there are none or several."""
    return next(iter(cgroups)) if len(cgroups) == 1 else 0
