"""The search for owners: what is asked for and when, and what is made of the answers."""

from __future__ import annotations

import attrs
import pytest
from sockdiag_fakes import FakeSocket

from nstat_async._contract import LookupFailed
from nstat_async._model import Attribution, Process
from nstat_async.sockdiag import ANYWHERE, OwnersAnswer, ProcessesAnswer, ProcessFacts, _output, _owners, _processes
from nstat_async.sockdiag._entry import Entry
from nstat_async.sockdiag._output import Output
from nstat_async.sockdiag._owners import TABLES_AT_ONCE, OwnerSource
from nstat_async.sockdiag._processes import Processes
from nstat_async.sockdiag._rows import RowFormats


def facts(pid: int, name: str = "p", **more) -> ProcessFacts:
    return ProcessFacts(pid, 7000 + pid, name, **{"path": f"/bin/{name}", **more})


class Search:
    """A source of owners with sockets of the test's; it stands in for their book."""

    number = 0

    def __init__(self, *, sees_all: bool = False) -> None:
        self.output = Output(now=100.0, poll=1)
        self.sockets: list[Entry] = []
        self.processes = Processes(self.output, lambda: self.sockets)
        self.source = OwnerSource(self.output, self.processes, sees_all=sees_all)
        self.learned: list[tuple[int, object]] = []

    def learn_owner(self, entry, owner, place) -> None:
        entry.owner, entry.place = owner, place
        self.learned.append((entry.cookie, owner.name if isinstance(owner, Process) else owner))

    def learn_others(self, entry, owner, others) -> None:
        entry.owner, entry.others = owner, others
        self.learned.append((entry.cookie, [name for _, name in others.oldest]))

    def socket(self, cookie: int, inode: int, *, protocol: int = 6, uid: int = 1000, wanted: bool = True) -> Entry:
        pieces, _ = RowFormats().cut(FakeSocket(cookie, inode=inode, uid=uid).message(1))
        entry = Entry(lambda: self, protocol, pieces, 1, 1)
        entry.over = False
        self.sockets.append(entry)
        if wanted:
            self.source.want(entry)
        return entry

    def close(self, entry: Entry) -> None:
        entry.over = True
        self.sockets.remove(entry)
        self.source.forget(entry, entry.user[1])

    def ask(self, seconds: float = 1.0):
        """A poll comes; what it asks for."""
        self.output.now += seconds
        self.output.poll += 1
        self.source.search()
        return self.request

    @property
    def request(self):
        """What was asked since; `None`: nothing."""
        commands, self.output.commands = self.output.commands, []
        assert len(commands) <= 1
        return commands[0].request if commands else None

    def answer(self, *owners: tuple[int, int], known=(), **rest):
        """These hold these; what is asked for then."""
        pids = dict.fromkeys(pid for _, pid in owners)
        self.source.take(OwnersAnswer(owners, (*map(facts, pids), *known), **rest))
        return self.request

    def owned(self, *owners: tuple[int, int]) -> list[Entry]:
        """Sockets by number, which is their inode, that these processes were found to hold."""
        found = [self.socket(inode, inode) for inode, _ in owners]
        self.ask()
        self.answer(*owners)
        self.learned.clear()
        return found

    def pids(self) -> list[int | None]:
        return [entry.process and entry.process.pid for entry in self.sockets]


@pytest.fixture
def search():
    return Search()


# -- how long searches go


def test_a_search_goes_on_with_what_came_meanwhile_and_once_more_behind_its_end(search):
    search.owned((1, 42))
    search.socket(2, 12)
    request = search.ask()
    assert (request.inodes, request.recent, request.below) == ({12}, (42,), None)
    search.socket(3, 13)
    request = search.answer(below=50)
    assert (request.inodes, request.recent, request.below) == (set(), (), 50), "no poll asked for it"
    assert search.ask() is None, "it is under way"
    request = search.answer(below=40)
    assert (request.inodes, request.recent, request.below) == ({13}, (42,), 40)
    assert search.answer(below=30).inodes == set()
    assert search.answer().inodes == {13}, "the processes above were not looked at for it"
    assert search.answer((13, 42)) is None
    assert search.pids() == [42, None, 42]
    assert not search.source.searching


def test_what_a_search_that_failed_was_asked_for_is_asked_for_again(search):
    search.socket(1, 11)
    search.ask()
    search.socket(2, 12)
    search.ask()
    search.answer(below=50)
    search.source.take(LookupFailed("no thread"))
    assert (search.source.searching, search.source.failure) == (False, "no thread")
    assert search.ask(0.0).inodes == {11, 12}
    assert search.answer((11, 42), (12, 42)) is None
    assert search.source.failure is None


def test_what_was_not_found_is_asked_for_ever_more_rarely_until_another_socket_has_it(search):
    def asked(polls):
        found = []
        for _ in range(polls):
            request = search.ask()
            found.append(bool(request and request.inodes))
            while request is not None:
                request = search.answer()
        return found

    search.socket(1, 11)
    assert asked(8) == [True, True, False, True, False, False, False, True]
    assert search.source.unresolved == 1
    search.socket(2, 11)
    assert asked(4) == [True, True, False, True]


def test_a_search_for_what_ends_meanwhile_says_nothing_of_it():
    search = Search(sees_all=False)
    first, second = search.socket(1, 11), search.socket(2, 12)
    search.ask()
    search.close(first)
    search.answer(refused=3)
    assert search.learned == [(2, Attribution.HIDDEN)]
    assert (search.source.unresolved, search.source.refused) == (1, 3)
    search.close(second)
    assert search.source.unresolved == 0


def test_datagram_sockets_that_nobody_has_are_looked_for_once_more_at_once_and_are_the_kernels():
    search = Search(sees_all=True)
    for number in (1, 2):
        search.socket(number, number, protocol=17)
    search.ask()
    assert search.answer(refused=0).inodes == {1, 2}
    search.answer(refused=0)
    assert search.learned == [(1, Attribution.KERNEL), (2, Attribution.KERNEL)]


# -- what is checked


def test_of_sockets_of_which_only_the_process_is_known_few_tables_are_listed(search):
    """All sockets of a process with its table; with their descriptors they cost little."""
    search.owned(*((number, 100 + number // 2) for number in range(2, 2 * TABLES_AT_ONCE + 8)))
    for entry in search.sockets:
        entry.place = None
    search.sockets[0].place = 3
    request = search.ask()
    assert request.held[-1] == (2, 101, 3), "behind others' tables, too"
    request = attrs.evolve(request, held=request.held[:-1])
    pids = sorted({pid for _, pid, _ in request.held})
    assert pids == list(range(pids[-1] - TABLES_AT_ONCE + 1, pids[-1] + 1)), "the last come first"
    assert sorted(inode for inode, *_ in request.held) == [n for pid in pids for n in (2 * pid - 200, 2 * pid - 199)]
    assert {number for *_, number in request.held} == {ANYWHERE}
    search.answer(met=tuple((inode, 9) for inode, *_ in request.held))
    assert search.sockets[-1].place == 9
    request = search.ask()
    assert {pid for _, pid, number in request.held if number == ANYWHERE} == set(range(101, pids[0])), (
        "the others' turn"
    )


def test_so_many_sockets_and_processes_are_checked_for_each_second(search, monkeypatch):
    monkeypatch.setattr(_owners, "SOCKETS_PER_SECOND", 10)
    monkeypatch.setattr(_owners, "PROCESSES_PER_SECOND", 5)
    search.owned(*((number, 100 + number) for number in range(1, 41)))
    for entry in search.sockets:
        entry.place = 3
    for seconds, sockets, processes in ((1.0, 11, 6), (0.5, 6, 3), (7.0, 11, 6)):
        request = search.ask(seconds)
        assert (len(request.held), len(request.verify)) == (sockets, processes)
        assert request.held[0][1:] == (100 + request.held[0][0], 3)
        search.answer()


def test_sockets_of_one_inode_are_checked_while_one_of_them_is_there(search):
    first = search.owned((7, 42))[0]
    second = search.socket(8, 7)
    search.ask()
    search.answer((7, 42))
    search.close(first)
    while not (request := search.ask()).held:
        search.answer()
    assert [inode for inode, *_ in request.held] == [7]
    search.answer(lost=(7,))
    search.answer((7, 43))
    assert search.pids() == [43]
    search.close(second)
    again = search.socket(9, 7)
    search.ask()
    search.answer((7, 44))
    assert (search.pids(), first.process.pid, second.process.pid) == ([44], 42, 43)
    assert search.source._holders(7) == (again,), "nothing is kept of those that are over"


def test_a_socket_that_ended_while_it_was_checked_is_not_looked_for(search):
    (entry,) = search.owned((1, 42))
    assert search.ask().held
    search.close(entry)
    assert search.answer(lost=(1,)) is None
    assert search.source._holders(1) == ()


def test_what_ends_while_a_long_answer_is_taken_in_keeps_no_other_from_being_looked_for_again(search, monkeypatch):
    monkeypatch.setattr(_output, "DONE_AT_ONCE", 1)
    entries = [search.socket(number, number) for number in (1, 2, 3)]
    search.ask()
    search.answer()
    search.close(entries[1])
    while search.output.busy:
        search.output.work()
    assert search.source.unresolved == 2
    assert search.ask().inodes == {1, 3}


def test_what_another_answer_says_of_a_known_process_is_so_for_all_its_sockets(search):
    (entry,) = search.owned((1, 42))
    search.socket(2, 2)
    search.ask()
    search.source.take(OwnersAnswer(((2, 42),), (facts(42, "other"),)))
    assert [each.process.name for each in search.sockets] == ["other", "other"]
    assert entry.process is search.sockets[1].process


def test_a_process_that_ended_leaves_its_sockets_to_others(search):
    here, there = search.owned((1, 42), (2, 43))
    here.used_by = (42, 7042)
    search.ask()
    assert search.answer(gone=((42, 7042),)).inodes == {1}
    assert (here.used_by, here.place, there.place) == (None, None, None)
    search.answer((1, 44))
    assert search.pids() == [44, 43]


def test_sockets_that_came_during_a_search_and_are_found_in_its_next_part_need_no_other_one(search):
    search.socket(1, 1)
    search.ask()
    search.socket(2, 2)
    search.source.search()
    assert search.source.sought == 1
    assert search.answer(below=50).inodes == {2}
    assert search.source.sought == 2
    search.output.now += 1.0
    assert search.answer((1, 42), (2, 42)) is None


def test_without_a_listener_nobody_looks_for_all_holders(search):
    search.output.first_poll = False
    search.socket(1, 1)
    search.ask()
    assert search.answer((1, 42)) is None


def test_an_answer_to_a_question_that_nobody_saw_asked_is_taken_in(search):
    """Of a recording that begins in the middle."""
    search.answer(lost=(5,), met=((6, 3),))
    assert search.learned == []


# -- what is learned


def test_a_long_answer_is_taken_in_by_and_by_though_a_process_runs_another_program_meanwhile(search, monkeypatch):
    monkeypatch.setattr(_output, "DONE_AT_ONCE", 1)
    monkeypatch.setattr(_owners, "LEARNED_IN_A_STEP", 1)
    for number in range(1, 9):
        search.socket(number, number)
    search.ask()
    search.answer(*((number, 42) for number in range(1, 9)))
    assert search.output.busy
    assert search.pids() == [42] + [None] * 7
    search.output.now += 1.0
    search.processes.of(facts(42, "other"), 1000)
    while search.output.busy:
        search.output.work()
    assert [(entry.owner.pid, entry.owner.name) for entry in search.sockets] == [(42, "other")] * 8
    assert len({id(entry.owner) for entry in search.sockets}) == 1


def test_of_several_owners_in_an_answer_the_first_of_whom_something_is_known_is_taken(search):
    search.socket(1, 1)
    search.socket(2, 2)
    search.ask()
    search.source.take(OwnersAnswer(((1, 43), (9, 42), (1, 42), (1, 44), (2, 44)), (facts(42), facts(44))))
    assert search.pids() == [42, 44]
    search.close(search.sockets[0])


@pytest.mark.parametrize(
    "inodes",
    [range(1, 21), (*range(1, 20), 19), range(20), (0, *range(2, 20)), (1, 2, 2, 0), (99, *range(1, 20))],
)
def test_many_sockets_that_are_new_are_wanted_as_each_is(inodes):
    """Also where some share an inode, or have none, or somebody waits for one of them already."""
    told = []
    for at_once in (True, False):
        search = Search()
        search.output.first_poll = False
        search.source.rounds = 7
        search.socket(99, 99, uid=4)
        new = [search.socket(number, inode, uid=number % 3, wanted=False) for number, inode in enumerate(inodes, 1)]
        if at_once:
            search.source.want_all(new)
        else:
            for entry in new:
                search.source.want(entry)
        request = search.ask()
        search.answer(*((inode, 42) for inode in sorted(request.inodes)))
        rounds = [entry.round for entry in search.sockets]
        told.append((request, rounds, search.learned, search.pids(), search.source.sought, search.source.undecided))
    assert told[0] == told[1]
    assert told[0][0].inodes == {99, *inodes} - {0}


def test_users_are_asked_for_once_and_bounded(search, monkeypatch):
    monkeypatch.setattr(_processes, "MAX_USERS", 2)
    for number, uid in enumerate((7, 8, 7, 9), 1):
        search.socket(number, number, uid=uid)
    assert search.ask().users == (7, 8)
    assert search.source.naming
    search.answer((1, 42), (2, 42), (4, 42), users=((7, "ada"), (9, "eve")))
    assert not search.source.naming
    assert [entry.process and entry.process.user for entry in search.sockets] == ["ada", None, None, None]


@pytest.mark.parametrize(("room", "user"), [(1, "zoe"), (0, None)])
def test_a_name_that_nobody_asked_for_is_kept_where_there_is_room(search, monkeypatch, room, user):
    monkeypatch.setattr(_processes, "MAX_USERS", 1 + room)
    search.socket(1, 1, uid=7)
    search.ask()
    search.answer((1, 42), users=((7, "ada"), (50, "zoe")))
    entry = search.socket(2, 2, uid=50)
    assert search.ask().users == ()
    search.answer((2, 43))
    assert entry.process.user == user


def test_processes_are_bounded_the_longest_known_are_forgotten(search, monkeypatch):
    monkeypatch.setattr(_processes, "MAX_PROCESSES", 2)
    search.owned((1, 42), (2, 43), (3, 44))
    assert [pid for pid, _ in search.ask().verify] == [43, 44]


def test_a_path_that_cannot_be_read_any_more_is_that_of_before_while_the_title_is_the_same(search):
    (entry,) = search.owned((1, 42))
    search.ask()
    search.answer(known=[facts(42, "x", path=None)])
    assert (entry.process.name, entry.process.path) == ("p", "/bin/p")
    search.ask()
    search.answer(known=[facts(42, "x", path=None, title="x")])
    assert (entry.process.name, entry.process.path) == ("x", None)


def test_what_records_do_not_say_of_a_process_is_asked_for_all_its_sockets(search):
    unnamed = facts(42, "p", path=None)
    entries = [search.socket(number, 0) for number in (1, 2, 3)]
    for entry in entries[:2]:
        entry.owner = search.processes.seen(entry, unnamed, 1000)
    assert search.source.naming
    search.processes.ask_names()
    request = search.request
    assert (request.processes, request.users) == (((42, 7042),), (1000,))
    entries[2].owner = search.processes.seen(entries[2], facts(43, "q", path=None), 1000)
    search.processes.ask_names()
    assert search.request is None, "one question at a time"
    entries[1].owner = None
    search.processes.take_names(ProcessesAnswer((facts(42), facts(50)), users=((1000, "ada"),)))
    assert [(e.process.path, e.process.user) for e in entries if e.process and e.process.pid == 42] == [
        ("/bin/p", "ada")
    ]
    search.processes.ask_names()
    assert search.request.processes == ((43, 7043),)
    search.processes.take_names(LookupFailed("no thread"))
    assert not search.source.naming


def test_the_others_that_hold_a_socket_are_known_when_all_were_looked_at(search):
    (entry,) = search.owned((1, 42))
    many = ((1, 3, (40, 42, 44)), (5, 2, (42, 99)))
    search.ask()
    search.answer(known=[facts(40, "old"), facts(42, "q")], shared=many)
    assert (entry.process.pid, entry.others.number, entry.others.oldest) == (40, 2, ((42, "q"),))
    assert search.source.rounds == 1
    search.learned.clear()
    search.ask()
    search.answer(known=[facts(40, "old"), facts(42, "q")], shared=many)
    assert search.learned == [], "nothing new"
    search.socket(2, 1)
    search.ask()
    search.answer((1, 40), known=[facts(42, "q")], shared=many)
    assert [each for each in search.learned if isinstance(each[1], list)] == [(1, ["q"]), (2, ["q"])]
    search.ask()
    search.answer(known=[facts(40, "old")], shared=((1, 2, ()), (6, 2, (98, 40))))
    assert (entry.process.pid, entry.process.uid, entry.others.number) == (40, 1000, 0)
    assert search.source.rounds == 4
    search.ask()
    search.answer(known=[facts(40, "old")], shared=((1, 2, (40, 99)),))
    assert (entry.process.pid, entry.process.uid, entry.others.number, entry.others.oldest) == (40, 1000, 1, ())


def test_a_socket_is_known_to_have_one_holder_when_a_whole_look_began_after_it(search):
    search.output.first_poll = False
    (entry,) = search.owned((1, 42))
    alone = []
    for _ in range(3):
        alone.append(search.source.is_alone(entry))
        search.ask()
        search.answer(shared=())
    assert alone == [False, False, True]
    for pids, expected in (((42, 43), False), ((42, 1), True)):
        search.ask()
        search.answer(known=[facts(pid) for pid in pids], shared=((1, 2, pids),))
        assert search.source.is_alone(entry) is expected
    assert not search.source.is_alone(search.socket(2, 2))
