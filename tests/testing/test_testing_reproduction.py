"""The emulated kernel says what the real kernel code said."""

import conversations
import details_reproduction
import pytest
import reproduction
import stack_reproduction

STARVED = conversations.names("control/*/older_client_starved")
TAHOE = conversations.names("control/xnu-12377*")
CONTROL = [name for name in conversations.names("control/*") if name not in {*STARVED, *TAHOE}]


@pytest.mark.parametrize("name", CONTROL)
def test_a_conversation_with_the_control_comes_out_equal_byte_for_byte(name):
    assert reproduction.play_control(name) > 0


@pytest.mark.parametrize("name", TAHOE)
def test_a_conversation_of_macos_26_comes_out_equal_byte_for_byte_and_its_media_are_counted_here(name):
    assert details_reproduction.play_details(name) > 0


@pytest.mark.parametrize("name", STARVED)
def test_an_older_client_starves_as_the_recorded_one_did(name):
    assert reproduction.play_starved(name) == 192 + 3


def test_a_wrong_byte_is_noticed(monkeypatch):
    """The comparison can fail: with the wrong kernel it does."""
    monkeypatch.setattr(conversations, "kernel", lambda name: "xnu-10063.141.1")
    with pytest.raises(reproduction.Mismatch):
        reproduction.play_control("control/xnu-11417.121.6/agg_tcp_kernel_101_QUERY_SRC_noagg")


STACK = [name for name in conversations.names("stack/*") if not name.endswith("/live_demo")]


@pytest.mark.parametrize("name", STACK)
def test_a_conversation_above_a_whole_network_stack_comes_out_equal_but_for_timestamps(name):
    assert stack_reproduction.play_stack(name) > 0
