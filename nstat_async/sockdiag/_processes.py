"""The processes that own sockets, with the names of their users.

A search for owners and records of eBPF programs name processes by their facts. A process is one object for all its sockets
of a user. If its facts change (``execve``, a new title, the name of its user), another object replaces it for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import attrs

from .._model import Attribution, Process
from ._entry import Entry
from ._host_requests import ProcessesAnswer, ProcessesRequest, ProcessFacts
from ._output import Output

RECENT_PIDS = 64
"""Owners of the sockets found last: a search looks at them early."""
MAX_PROCESSES = 100_000
"""Most processes that are remembered."""
MAX_USERS = 10_000
"""Most users whose names are remembered."""


class Processes:
    """Knows the processes found so far.

    Args:
        output: Takes the requests.
        entries: All sockets.
    """

    def __init__(self, output: Output, entries: Callable[[], Iterable[Entry]]) -> None:
        self._output = output
        self._entries = entries
        self._users: dict[int, str | None] = {}
        """Names of users; `None` while they are looked up, and for users without a name."""
        self.unnamed: list[int] = []
        """Users whose names the next request asks for."""
        self.known: dict[tuple[int, int | None, int], Process] = {}
        """By pid, start and the user of the socket; those that were checked longest ago come first."""
        self._recent: dict[int, None] = {}
        """Pids of the owners found last."""
        self._nameless: dict[tuple[int, int | None], dict[Entry, None]] = {}
        """Processes that are known by a record, which has no path, with their sockets."""
        self._naming: dict[tuple[int, int | None], dict[Entry, None]] = {}
        """Those of them that the present request asks for."""

    @property
    def naming(self) -> bool:
        """True while the facts of processes that are known by a record are looked up."""
        return bool(self._naming or self._nameless)

    # -- processes

    def of(self, facts: ProcessFacts, uid: int) -> Process:
        """The process of these facts, as the owner of a socket that this user made."""
        key = (facts.pid, facts.start_ticks, uid)
        process = self.known.get(key)
        if process is None:
            process = self.known[key] = self._make(facts, uid)
            if len(self.known) > MAX_PROCESSES:
                del self.known[next(iter(self.known))]
        elif self._make(facts, uid) != process:
            self.renew({key[:2]: facts})
            process = self.known[key]
        self._recent.pop(facts.pid, None)
        self._recent[facts.pid] = None
        if len(self._recent) > RECENT_PIDS:
            del self._recent[next(iter(self._recent))]
        return process

    def renew(self, changed: Mapping[tuple[int, int | None], ProcessFacts]) -> None:
        """Processes run another program now: replace them, for all their sockets."""
        self._replace({
            key: self._make(changed[key[:2]], key[2]) for key in self.known if key[:2] in changed
        })  # fmt: skip

    def _replace(self, changed: Mapping[tuple[int, int | None, int], Process]) -> None:
        """Replace processes by what is known of them now, for all their sockets."""
        # By identity: hashing processes would take longer than everything else here.
        renewed: dict[int, tuple[Process, Process]] = {}
        for key, new in changed.items():
            old = self.known[key]
            if new != old:
                self.known[key] = new
                renewed[id(old)] = (old, new)
        if renewed:
            self._output.do(self._pass_on(renewed))

    def _pass_on(self, renewed: Mapping[int, tuple[Process, Process]]) -> Iterator[None]:
        for entry in [entry for entry in self._entries() if id(entry.owner) in renewed]:
            yield
            if id(entry.owner) in renewed:  # it has had no other owner meanwhile
                entry.book.learn_owner(entry, renewed[id(entry.owner)][1], entry.place)

    def _make(self, facts: ProcessFacts, uid: int) -> Process:
        """The process of these facts; a path that cannot be read now stays as it was known."""
        name, path = facts.name, facts.path
        known = self.known.get((facts.pid, facts.start_ticks, uid)) if path is None else None
        if known is not None and known.title == facts.title:
            name, path = known.name, known.path
        return Process(
            facts.pid,
            name,
            facts.start_ticks,
            uid=uid,
            path=path,
            title=facts.title,
            user=self._users.get(uid),
            parent_pid=facts.parent_pid,
            started_ns=facts.started_ns,
            command_line=facts.command_line,
            attribution=Attribution.OBSERVED,
        )

    def end(self, dead: Collection[tuple[int, int | None]]) -> list[Process]:
        """Forget the processes with these pids and starts: they ended."""
        return [self.known.pop(key) for key in list(self.known) if key[:2] in dead]

    def next_to_check(self, number: int) -> tuple[tuple[int, int | None], ...]:
        """Pid and start of the processes that were checked longest ago."""
        keys = list(islice(self.known, number))
        for key in keys:
            self.known[key] = self.known.pop(key)
        return tuple(dict.fromkeys((pid, start) for pid, start, _ in keys))

    @property
    def recent(self) -> tuple[int, ...]:
        """Pids of the owners found last, the last one first."""
        return tuple(reversed(self._recent))

    # -- names of users

    def want_name(self, uid: int) -> None:
        """Have the next request ask for this user's name, if it is not known."""
        if uid not in self._users and len(self._users) < MAX_USERS:
            self._users[uid] = None
            self.unnamed.append(uid)

    def learn_names(self, users: tuple[tuple[int, str], ...]) -> None:
        """Take in names of users, also for the known processes."""
        room = MAX_USERS - len(self._users)
        new = {uid: name for uid, name in users if self._users.get(uid) != name and (uid in self._users or room > 0)}
        self._users.update(new)
        self._replace({
            key: attrs.evolve(process, user=new[key[2]]) for key, process in self.known.items() if key[2] in new
        })  # fmt: skip

    def take_unnamed(self) -> tuple[int, ...]:
        """The users whose names a request asks for now."""
        users, self.unnamed = tuple(self.unnamed), []
        return users

    # -- processes that are known by a record

    def seen(self, entry: Entry, facts: ProcessFacts, uid: int) -> Process:
        """The process that a record names for this socket, with all that is known of it."""
        self.want_name(uid)
        process = self.known.get((facts.pid, facts.start_ticks, uid)) or self.of(facts, uid)
        if process.path is None:
            self._nameless.setdefault(process.key, {})[entry] = None
        return process

    def ask_names(self) -> None:
        """Ask for the facts of processes that a record does not have."""
        if self._nameless and not self._naming:
            self._naming, self._nameless = self._nameless, {}
            self._output.ask(ProcessesRequest(tuple(self._naming), self.take_unnamed()), self.take_names)

    def take_names(self, answer: Any) -> None:
        """Take in the facts of those processes that still exist."""
        naming, self._naming = self._naming, {}
        self.learn_names(answer.users if isinstance(answer, ProcessesAnswer) else ())
        for facts in answer.processes if isinstance(answer, ProcessesAnswer) else ():
            key = (facts.pid, facts.start_ticks)
            for entry in naming.get(key, ()):
                if entry.process is not None and entry.process.key == key:
                    uid = entry.user[0]
                    known = (facts.pid, facts.start_ticks, uid)
                    process = self.known[known] = self._make(facts, uid)
                    entry.book.learn_owner(entry, process, entry.place)
