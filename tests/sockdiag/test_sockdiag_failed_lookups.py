"""A search for owners that fails: flows come without processes, a note says why, and it is tried again."""

from __future__ import annotations

from sockdiag_fakes import FakeKernel, FakeSocket

from nstat_async._contract import LookupFailed

WHY = "can't start new thread"


def test_flows_without_processes_and_a_note_until_a_search_succeeds():
    kernel = FakeKernel()
    kernel.hold_lookups = True
    kernel.sockets[1] = FakeSocket(1, inode=77)
    kernel.owners[77] = 42
    kernel.start()

    def fail():
        events = []
        while kernel.held:
            kernel.session.lookup_done(kernel.held.pop().token, LookupFailed(WHY), kernel.now)
            events += kernel.run()
        return events

    def notes():
        return [note for note in kernel.session.capabilities.notes if note.startswith("processes are unknown")]

    assert notes() == []
    names = [type(event).__name__ for event in fail()]
    assert names == ["FlowAdded", "PollCompleted"], "the poll ends, though nothing was found"
    assert notes() == [f"processes are unknown: {WHY}"]
    for _ in range(3):
        kernel.wait(1.0)
        fail()
    assert notes() == [f"processes are unknown: {WHY}"]
    kernel.hold_lookups = False
    events = [event for _ in range(70) for event in kernel.wait(1.0)]
    assert notes() == []
    (flow,) = [flow for flow, _ in kernel.session.flows()]
    assert flow.process.pid == 42, events
