"""Before 10.11 only announcements say that a flow is there: where a list of all flows does not fit, that is said, for as long as it is so."""

from __future__ import annotations

import pytest
from virtual import VirtualMonitor, compare

from nstat_async import EventsLost, FlowAdded, LossCause, PollCompleted, Provider
from nstat_async.ntstat import DarwinErrno
from nstat_async.testing import EmulatedKernel
from nstat_async.testing._client import EmulatedClient

OLD = ["xnu-1699.32.7", "xnu-2050.48.11", "xnu-2422.115.4", "xnu-2782.40.9"]
REMOTE = "192.0.2.2"


def watch(name, flows, *, buffer=2048, interval=5.0):
    kernel = EmulatedKernel(name)
    made = [kernel.open_tcp(remote=(REMOTE, n + 1)) for n in range(flows)]
    monitor = VirtualMonitor(kernel, interval=interval, receive_buffer=buffer, providers=("tcp",))
    story = []
    monitor.add_sink(story.extend)
    return kernel, made, monitor, story


def count(monitor):
    return sum(1 for _ in monitor.session.flows())


def polls(story):
    return [event.complete for event in story if isinstance(event, PollCompleted)]


def losses(story, cause=LossCause.ANNOUNCEMENT):
    return [event for event in story if isinstance(event, EventsLost) and event.cause is cause]


@pytest.mark.parametrize("name", OLD)
def test_no_poll_is_complete_while_flows_may_be_there_that_no_list_had_room_for(name):
    kernel, made, monitor, story = watch(name, 100)
    monitor.run(30.0)
    assert count(monitor) < len(list(kernel.flows()))
    assert set(polls(story)) == {False}
    said = [
        e.cause for e in story if isinstance(e, EventsLost) and e.cause in {LossCause.ANNOUNCEMENT, LossCause.RESYNC}
    ]
    assert said[-1] is LossCause.ANNOUNCEMENT, "another control socket is no repair where its list was short, too"
    for flow in made[10:]:
        flow.close()
    monitor.run(150.0)
    assert count(monitor) == len(list(kernel.flows()))
    assert polls(story)[-1]


def test_a_look_whose_list_is_whole_and_has_nothing_new_makes_polls_complete_again():
    """Nothing takes over, for nothing is missing: what no list had room for is gone."""
    _, made, monitor, story = watch(OLD[-1], 100)
    monitor.run(30.0)
    seen = [flow.remote.port for flow, _ in monitor.session.flows()]
    for port, flow in enumerate(made, 1):
        if port not in seen[:10]:
            flow.close()
    story.clear()
    monitor.run(150.0)
    assert count(monitor) == 10
    assert not losses(story)
    assert not losses(story, LossCause.RESYNC)
    assert polls(story)[-1]


@pytest.mark.parametrize("name", OLD)
def test_a_look_that_cannot_tell_whether_all_flows_were_announced_says_so_once(name):
    kernel, made, monitor, story = watch(name, 10, interval=None)
    monitor.run(1.0)
    for n in range(90):
        made.append(kernel.open_tcp(remote=(REMOTE, 1000 + n)))
        monitor.run(0.01)
    monitor.run(130.0)
    assert count(monitor) == len(made)
    assert monitor.session.statistics()["audits"] > 1
    (loss,) = losses(story)
    assert loss.count is None
    assert "does not fit" in loss.detail
    assert not losses(story, LossCause.RESYNC)
    assert set(polls(story)) == {True}, "no flow is known to be missing"


def test_a_flow_whose_announcement_was_lost_makes_polls_incomplete_until_it_is_found():
    kernel = EmulatedKernel("xnu-11417.121.6")
    monitor = VirtualMonitor(kernel, interval=1.0, discovery="announce")
    monitor.run(1.0)
    story = []
    monitor.add_sink(story.extend)
    kernel.faults.lose_announcements = 1.0
    kernel.open_tcp(remote=(REMOTE, 998))
    kernel.faults.lose_announcements = 0.0
    kernel.open_tcp(remote=(REMOTE, 999))
    monitor.control_present = False
    monitor.run(4.0)
    assert set(polls(story)) == {False}
    monitor.control_present = True
    monitor.run(10.0)
    assert count(monitor) == 2
    assert polls(story)[-1]
    assert losses(story, LossCause.RESYNC)


def test_a_look_at_a_socket_that_could_not_be_polled_in_full_finds_nothing_missed():
    """What only its poll would have told is not lost yet."""
    kernel = EmulatedKernel("xnu-7195.141.2")
    kernel.open_tcp(remote=(REMOTE, 998))
    monitor = VirtualMonitor(kernel, interval=None)
    story = []
    monitor.add_sink(story.extend)
    monitor.run(1.0)
    kernel.open_tcp(remote=(REMOTE, 999))
    first = kernel.clients[0]
    ask = first.send

    def send(data):
        kernel.faults.full = True
        ask(data)

    first.send = send
    monitor.run(100.0)
    assert monitor.session.statistics()["audits"]
    assert not losses(story)
    assert polls(story)[-1] is False
    first.send = ask
    kernel.faults.full = False
    monitor.poll()
    assert count(monitor) == 2
    assert polls(story)[-1]


@pytest.mark.parametrize("name", ["xnu-3248.60.11", "xnu-8020.140.41", "xnu-11417.121.6"])
def test_no_poll_is_complete_after_a_subscription_without_an_answer_until_another_control_socket_has_one(
    name, monkeypatch
):
    """The kernel may not watch that provider, and the polls lack its flows. The other socket's flows are as old as they are."""
    kernel = EmulatedKernel(name)
    kernel.open_tcp(remote=(REMOTE, 1), rx=5)
    kernel.open_udp(remote=(REMOTE, 2), rx=6)
    kernel.advance(1.0)
    requests, send = [], EmulatedClient.send

    def refusing(client, data):
        requests.append(data)
        if len(requests) == 1:
            raise OSError(DarwinErrno.ENOBUFS, "no buffer space")
        return send(client, data)

    monkeypatch.setattr(EmulatedClient, "send", refusing)
    monitor = VirtualMonitor(kernel, interval=1.0)
    picture = monitor.picture
    assert (picture.polls, picture.complete_polls, len(picture.flows)) == (1, 0, 1)
    assert [loss.cause for loss in picture.losses] == [LossCause.KERNEL_BUFFER, LossCause.ANNOUNCEMENT]
    assert picture.losses[1].detail == "the answer to the subscription to tcp was lost"
    story = []
    monitor.add_sink(story.extend)
    monitor.run(1.5)
    compare(kernel, picture.flows.values(), providers={Provider.TCP, Provider.UDP})
    assert picture.last_poll.complete
    (added,) = (event for event in story if isinstance(event, FlowAdded))
    assert added.preexisting is (added.flow.started_ns is not None)  # 10.11 does not tell when it began
