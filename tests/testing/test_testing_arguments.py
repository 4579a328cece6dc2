"""What a test hands over and no kernel could be is refused by name, whatever it is."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nstat_async import InterfaceKind, Provider, UsageError
from nstat_async.testing import EmulatedInterface, EmulatedKernel, Faults, UnixServer, Workload, serve_unix

_NONSENSE: tuple[Any, ...] = (
    None, True, -1, 0, 1, 5, 10**400, 0.5, math.nan, math.inf, "", "x", "en0", "a\0b", "\udcff", b"", b"x", (), (1, 2), (1, -2), [1], [(1, 2)],
    {}, {"x": 1}, {1: 2}, {"nstat_tcp_descriptor": 1}, {"nstat_tcp_descriptor": [(4, "x")]}, {3}, object(), int, print, Provider.TCP, Provider.ROUTE,
    InterfaceKind.WIFI, ("192.0.2.1", 443), ("192.0.2.1", 1 << 16), "192.0.2.1:443",
)  # fmt: skip


def _opened(method: str, **options: Any) -> Callable[..., object]:
    def call(*arguments: Any, **more: Any) -> object:
        return getattr(EmulatedKernel("xnu-12377.121.6"), method)(*arguments, **{**options, **more})

    return call


def _on_flow(method: str) -> Callable[..., object]:
    def call(**arguments: Any) -> object:
        return getattr(EmulatedKernel().open_udp(remote=("192.0.2.1", 443)), method)(**arguments)

    return call


_OPEN = EmulatedKernel.open
_CALLS: tuple[tuple[Callable[..., object], Callable[..., object]], ...] = (
    (EmulatedKernel, EmulatedKernel),
    (Faults, Faults),
    (EmulatedInterface, lambda **given: EmulatedInterface(**{"name": "x", "index": 9, "kind": InterfaceKind.WIFI, **given})),
    (Workload, lambda **given: Workload(**{"kernel": EmulatedKernel(), **given})),
    (_OPEN, _opened("open", provider=Provider.UDP)),
    (_OPEN, _opened("open_tcp")),
    (_OPEN, _opened("open_udp")),
    (_OPEN, _opened("open_quic")),
    (EmulatedKernel.open_flow, _opened("open_flow", provider_id=2)),
    (EmulatedKernel.open_connection, _opened("open_connection")),
    (EmulatedKernel.open_subflow, _opened("open_subflow", parent=None, remote=None)),
    (EmulatedKernel.add_route, _opened("add_route", destination="192.0.2.1")),
    (EmulatedKernel.add_interface, _opened("add_interface", name="x", index=9, kind=InterfaceKind.WIFI)),
    (EmulatedKernel.remove_interface, _opened("remove_interface")),
    (EmulatedKernel.interface_transfer, _opened("interface_transfer", name="en0")),
    (EmulatedKernel.end_process, _opened("end_process")),
    (EmulatedKernel.inject, _opened("inject")),
    (EmulatedKernel.send_system_information, _opened("send_system_information")),
    (EmulatedKernel.advance, _opened("advance")),
    (EmulatedKernel.jump_clock, _opened("jump_clock")),
    (EmulatedKernel.transport, _opened("transport")),
    (EmulatedKernel.backend, _opened("backend")),
    *(
        (getattr(type(EmulatedKernel().open_udp()), name), _on_flow(name))
        for name in ("transfer", "connect", "bind", "accept", "listen", "close", "event", "set_state", "use_interface", "set", "rename_process")
    ),
)  # fmt: skip


def _parameters(signature: Callable[..., object]) -> list[str]:
    found = inspect.signature(signature).parameters.values()
    return [each.name for each in found if each.name not in {"self", "more"} and each.kind is not each.POSITIONAL_ONLY]


_PLACES = [(call, name) for signature, call in _CALLS for name in _parameters(signature)]


@pytest.mark.parametrize(("call", "name"), _PLACES, ids=[name for _, name in _PLACES])
def test_an_argument_is_taken_or_refused_by_a_usage_error(call, name):
    """Whatever stands in for one argument; where others are missing, Python says so."""
    for value in _NONSENSE:
        if name in {"provider", "responsible"} and callable(value):
            continue
        arguments = value if name == "fields" and isinstance(value, dict) else {name: value}
        refusal = _refusal(call, arguments)
        assert refusal is None or len(refusal) < 2000


def _refusal(call: Callable[..., object], arguments: dict[str, Any]) -> str | None:
    try:
        call(**arguments)
    except UsageError as error:
        return str(error)
    except TypeError as error:  # Python's own, of the call
        if not any(
            word in str(error) for word in ("missing", "unexpected keyword", "multiple values", "keywords must be")
        ):
            raise
    return None


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"insertions": 5}, "insertions: 5 is not an instance of Mapping"),
        ({"insertions": {"x": 1}}, "nstat_tcp_descriptor"),
        ({"insertions": {"nstat_tcp_descriptor": [(4, -1)]}}, "insertions: bytes: -1"),
        ({"layout_number": 99}, "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12"),
        ({"privileged": "no"}, "privileged: 'no' is neither True nor False"),
        ({"clock": 5}, "clock: 5"),
        ({"seed": "x"}, "seed: 'x'"),
    ],
)
def test_the_error_names_the_argument_and_what_is_right(arguments, says):
    with pytest.raises(UsageError) as error:
        EmulatedKernel(**arguments)
    assert says in str(error.value)


def test_faults_and_interfaces_are_checked_when_they_are_changed_too():
    kernel = EmulatedKernel()
    with pytest.raises(UsageError, match="lose_batches"):
        kernel.faults.lose_batches = "often"
    with pytest.raises(UsageError, match="delegate"):
        kernel.interface("utun0").delegate = "en0"
    assert kernel.faults == kernel.faults
    assert attrs.asdict(kernel.faults, recurse=False)["lose_batches"] == 0.0


@given(
    st.dictionaries(st.text(), st.one_of(st.integers(), st.text(), st.lists(st.tuples(st.integers(), st.integers()))))
)
def test_insertions_of_structures_that_do_not_exist_are_refused(insertions):
    try:
        EmulatedKernel(insertions=insertions)
    except UsageError:
        assert insertions
    else:
        assert not insertions


def test_counters_by_medium_may_be_given_when_a_flow_is_made():
    flow = EmulatedKernel("xnu-12377.121.6").open_tcp(remote="192.0.2.1:443", **{"media_stats.bluetooth.rxbytes": 7})
    at = flow.kernel.layout["nstat_detailed_counts"].by_name["media_stats.bluetooth.rxbytes"].offset
    assert int.from_bytes(flow.encoded_counts(detailed=True)[at : at + 8], "little") == 7


@pytest.mark.parametrize("path", [5, "", b"x", "a\0b"])
def test_a_server_refuses_what_is_no_path(path):
    for serve in (
        EmulatedKernel().serve_unix,
        lambda each: serve_unix(EmulatedKernel(), each),
        lambda each: UnixServer(EmulatedKernel(), each),
    ):
        with pytest.raises(UsageError, match="path"):
            serve(path)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_bytes_may_come_in_whatever_holds_them(kind):
    kernel = EmulatedKernel()
    client = kernel.connect()
    kernel.inject(kind(b"nonsense"))
    assert client.receive() == b"nonsense"


def test_a_server_without_a_workload_says_what_it_takes(tmp_path):
    with pytest.raises(UsageError, match="workload: 5 is not an instance of Workload or None"):
        serve_unix(EmulatedKernel(), str(tmp_path / "socket"), workload=5)
