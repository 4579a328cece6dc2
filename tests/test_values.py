"""Values by name: what was written is read, what is unknown is skipped, what is wrong is refused."""

from __future__ import annotations

import enum
import json
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nstat_async import Endpoint, InterfaceKind, ProtocolError, Provider, TcpState, UsageError
from nstat_async._values import Vocabulary, from_json, to_json, to_text
from nstat_async.ntstat import RECORDED as DARWIN_VALUES
from nstat_async.ntstat import Evidence, KnownFlow
from nstat_async.ntstat import Setup as DarwinSetup
from nstat_async.recording import steps
from nstat_async.sockdiag import RECORDED as LINUX_VALUES
from nstat_async.sockdiag import LinkKindsAnswer, NetworkNamespace, OwnersAnswer, OwnersRequest, ProcessFacts
from nstat_async.sockdiag import Setup as LinuxSetup

KNOWN = KnownFlow(
    provider=Provider.TCP,
    local=Endpoint.parse("fe80::1%4", 80),
    remote=Endpoint.parse("192.0.2.1", 443),
    state=TcpState.ESTABLISHED,
    rx_bytes=1 << 40,
    tx_bytes=0,
)


class Colour(enum.Enum):
    RED = "red"
    SEVEN = 7


@attrs.frozen
class Inner:
    number: int
    raw: bytes = b""


@attrs.frozen
class Everything:
    text: str
    flag: bool = False
    ratio: float = 0.0
    colour: Colour = Colour.RED
    maybe: int | None = None
    either: int | str = 0
    pair: tuple[int, str] = (0, "")
    many: tuple[Inner, ...] = ()
    numbers: frozenset[int] = frozenset()
    inner: Inner | None = None
    free: Any = None
    _hidden: int = 0


def through_json(value: Any) -> Any:
    data = json.loads(json.dumps(to_json(value)))
    assert json.loads(to_text(value)) == data
    return data


whole = st.integers(-(1 << 63), (1 << 64) - 1)
inner = st.builds(Inner, whole, st.binary(max_size=9))
everything = st.builds(
    Everything,
    st.text(),
    st.booleans(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(Colour),
    st.none() | whole,
    whole | st.text(),
    st.tuples(whole, st.text()),
    st.lists(inner, max_size=3).map(tuple),
    st.frozensets(whole, max_size=3),
    st.none() | inner,
    st.sampled_from((None, 3, "x", [1, {"a": None}])),
    whole,
)


@given(everything)
def test_any_value_is_the_same_after_json(value):
    assert from_json(Everything, through_json(value)) == value


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (DARWIN_VALUES, Evidence(flows=(), pid=1, uid=2, interface_index=None)),
        (DARWIN_VALUES, Evidence(flows=(KNOWN,), pid=1, uid=2, interface_index=3)),
        (LINUX_VALUES, OwnersAnswer(((5, 42),), (ProcessFacts(42, 77, "curl", None),), 41, ((9, 1), (8, None)))),
        (LINUX_VALUES, OwnersRequest(frozenset({3, 1}), (7,), 5, ((1, None),))),
        (LINUX_VALUES, LinkKindsAnswer(1, (("wlan0", "wifi"),))),
        (LINUX_VALUES, None),
    ],
)
def test_the_values_of_both_protocols_are_the_same_after_json(kind, value):
    assert kind.read(json.loads(json.dumps(kind.write(value)))) == value


def test_a_step_is_the_same_after_json():
    step = steps.ChannelOpened(immediate=False, receive_buffer=8192)
    assert steps.read_step(json.loads(json.dumps(steps.write_step(step)))) == step
    for data in (None, "Started", 3, [], {"type": "Sat down"}):
        with pytest.raises(ProtocolError):
            steps.read_step(data)


def test_a_field_that_is_not_known_is_skipped_and_one_that_is_missing_has_its_default():
    assert from_json(Everything, {"text": "x", "of a later version": [{}]}) == Everything("x")
    assert from_json(Inner, {"number": 3, "raw": "00ff"}) == Inner(3, b"\0\xff")


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        "text",
        {},
        {"text": 3},
        {"text": None},
        {"text": "x", "flag": 1},
        {"text": "x", "ratio": float("nan")},
        {"text": "x", "ratio": "1"},
        {"text": "x", "ratio": 10**400},
        {"text": "x", "colour": "green"},
        {"text": "x", "colour": ["red"]},
        {"text": "x", "maybe": 1.0},
        {"text": "x", "maybe": True},
        {"text": "x", "maybe": 1 << 64},
        {"text": "x", "maybe": -(1 << 63) - 1},
        {"text": "x", "either": None},
        {"text": "x", "pair": [1]},
        {"text": "x", "pair": {"0": 1}},
        {"text": "x", "many": [{}]},
        {"text": "x", "many": {"number": 1}},
        {"text": "x", "numbers": [[1]]},
        {"text": "x", "inner": {"number": 1, "raw": "zz"}},
    ],
)
def test_a_wrong_type_or_size_is_an_error_of_the_librarys_own(data):
    with pytest.raises(ProtocolError):
        from_json(Everything, data)


def test_the_error_names_the_field():
    with pytest.raises(ProtocolError, match=r"inner: .*number"):
        from_json(Everything, {"text": "x", "inner": {"number": "seven"}})


def test_a_setup_with_a_timebase_that_cannot_be_is_refused():
    for timebase in ([0, 0], [-1, 1], [1, 1 << 40]):
        with pytest.raises(ProtocolError):
            from_json(DarwinSetup, {"kernel": "xnu-11417.121.6", "timebase": timebase})
    setup = from_json(LinuxSetup, {"namespaces": [{}, {"label": "one", "device": 4, "inode": 7, "colour": 1}]})
    assert setup.namespaces == (NetworkNamespace(), NetworkNamespace("one", device=4, inode=7))


def test_a_class_that_is_not_known_is_refused_and_what_is_no_value_is_not_written():
    words = Vocabulary(Inner)
    for data in ({"type": "Outer"}, {}, [], {"type": ["Inner"]}, {"type": "Inner"}):
        with pytest.raises(ProtocolError):
            words.read(data)
    with pytest.raises(UsageError, match="object"):
        words.write(object())
    assert words.write(InterfaceKind.WIFI) == "wifi"
