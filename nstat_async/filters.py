"""Filters on flows: values that combine with ``&``, ``|`` and ``~``.

    Monitor(flow_filter=by_pid(42) & ~loopback())

A filter looks at a `Flow`; any callable that takes a flow and returns a bool may
stand for one. `parse` makes one of a text; the command line and the web server use the same keys.
What a flow *is* may change while it lives (its address is bound, its owner changes), so `FlowGate`
keeps count: a consumer sees a flow as added when it begins to match and as removed
(``reason=FILTERED``) when it ceases to.

Filtering happens here and not in the kernel: Darwin's kernel filters suppress
reports, not sources, and make losses undetectable (see ``docs/ntstat.md``).
"""

from __future__ import annotations

import enum
import importlib
import ipaddress
import operator
from collections.abc import Callable, Container, Iterable, Sequence
from functools import partial, wraps
from typing import Any, ParamSpec, TypeVar, Union
from urllib.parse import unquote

import attrs

from ._checks import check_predicate
from ._errors import UsageError
from ._events import AnyEvent, FlowAdded, FlowRemoved, FlowUpdated, RemovalReason
from ._model import Direction, Endpoint, Flow, InterfaceKind, Outcome, Process, Provider, TcpState
from ._public import only

__all__ = [
    "Filter",
    "FlowGate",
    "by_address",
    "by_cgroup",
    "by_command_line",
    "by_container",
    "by_direction",
    "by_host",
    "by_interface",
    "by_interface_kind",
    "by_namespace",
    "by_outcome",
    "by_pid",
    "by_pod",
    "by_port",
    "by_process_name",
    "by_provider",
    "by_state",
    "by_uid",
    "by_unit",
    "by_user",
    "from_items",
    "loopback",
    "matching",
    "parse",
]
__dir__ = only(__all__)

Predicate = Callable[[Flow], bool]

SHORT_ID = 12
"""Characters of a container's id that its engine shows."""


@attrs.frozen(repr=False)
class Filter:
    """A condition on flows. Make one with the functions of this module: these can be pickled, and so can what is made of them."""

    predicate: Predicate = attrs.field(eq=False)
    text: str
    """What it says, for messages and `repr`."""
    remake: Callable[[], Filter] | None = attrs.field(default=None, eq=False, kw_only=True)
    """Makes it again: a pickle has this instead of the predicate. `None`: the predicate is pickled itself."""
    needs_extras: bool = attrs.field(default=False, eq=False, kw_only=True)
    """It looks at what is known with ``extras`` only (on Linux)."""

    def __call__(self, flow: Flow) -> bool:
        """True if the flow matches."""
        return self.predicate(flow)

    def __and__(self, other: FilterLike) -> Filter:
        left, right = self, as_filter(other)
        again = partial(operator.and_, left, right)
        return left._with(right, lambda flow: left(flow) and right(flow), "&", again)

    def __or__(self, other: FilterLike) -> Filter:
        left, right = self, as_filter(other)
        again = partial(operator.or_, left, right)
        return left._with(right, lambda flow: left(flow) or right(flow), "|", again)

    def _with(self, other: Filter, predicate: Predicate, sign: str, again: Callable[[], Filter]) -> Filter:
        text, needs = f"({self.text} {sign} {other.text})", self.needs_extras or other.needs_extras
        return Filter(predicate, text, remake=again, needs_extras=needs)

    def __invert__(self) -> Filter:
        again = partial(operator.invert, self)
        return Filter(lambda flow: not self(flow), f"~{self.text}", remake=again, needs_extras=self.needs_extras)

    __rand__ = __and__
    __ror__ = __or__

    def __repr__(self) -> str:
        return f"<Filter {self.text}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return (Filter, (self.predicate, self.text)) if self.remake is None else (self.remake, ())


FilterLike = Union[Filter, Predicate]


def as_filter(value: FilterLike) -> Filter:
    """A filter of a filter or a predicate.

    Raises:
        UsageError: It is neither, or asynchronous.
    """
    if isinstance(value, Filter):
        return value
    check_predicate("flow_filter", value)
    return matching(value)


def matching(predicate: Predicate) -> Filter:
    """Flows for which the function returns true.

    Raises:
        UsageError: It is no plain function: what an ``async def`` returns is always true.
    """
    check_predicate("matching", predicate)
    return Filter(predicate, getattr(predicate, "__name__", "predicate"))


# --- what may be asked for ------------------------------------------------------------

_T = TypeVar("_T")
_E = TypeVar("_E", bound=enum.Enum)


def _each(name: str, values: Iterable[Any], check: Callable[[Any], _T | None], right: str) -> tuple[_T, ...]:
    """The values of a filter, each checked.

    Raises:
        UsageError: There are none, or one of them is wrong.
    """
    found = []
    for value in values:
        good = check(value)
        if good is None:
            raise UsageError(f"{name}: {value!r} is not {right}")
        found.append(good)
    if not found:
        raise UsageError(f"{name}: give at least one: {right}")
    return tuple(found)


def _whole(least: int, most: int) -> Callable[[Any], int | None]:
    def check(value: Any) -> int | None:
        return value if type(value) is int and least <= value <= most else None

    return check


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _members(name: str, kind: type[_E], values: Iterable[_E | str]) -> frozenset[_E]:
    known: dict[Any, _E] = {member.value: member for member in kind} | {member: member for member in kind}
    words = ", ".join(str(member.value) for member in kind)

    def check(value: Any) -> _E | None:
        return known.get(value) if isinstance(value, (str, kind)) else None

    found: tuple[_E, ...] = _each(name, values, check, f"one of {words}")
    return frozenset(found)


def _user(value: Any) -> int | None:
    """A user id, by number or name."""
    if not isinstance(value, str):
        return _whole(0, 2**32 - 1)(value)
    try:
        return importlib.import_module("pwd").getpwnam(value).pw_uid  # type: ignore[no-any-return]
    except (ImportError, KeyError, ValueError):  # no such user, or a system without users
        return None


def _user_or_name(value: Any) -> int | str | None:
    """A user id, or what can be a user's name: no number, which is an id that somebody forgot to make one."""
    if isinstance(value, str):
        return value if value.isprintable() and value[:1] not in {"", "-"} and not value.isdecimal() else None
    return _whole(0, 2**32 - 1)(value)


def _listed(values: Iterable[object]) -> str:
    return ", ".join(sorted(repr(getattr(value, "value", value)) for value in values))


# --- the filters ----------------------------------------------------------------------

_P = ParamSpec("_P")


def _can_be_pickled(make: Callable[_P, Filter]) -> Callable[_P, Filter]:
    """The filters of this function know how they were made."""

    @wraps(make)
    def made(*values: _P.args, **options: _P.kwargs) -> Filter:
        return attrs.evolve(make(*values, **options), remake=partial(made, *values, **options))

    return made


def is_of(process: Process | None, pids: Container[int]) -> bool:
    """True for a process with one of these ids, or one that works on behalf of such a process."""
    return process is not None and (process.pid in pids or process.effective_pid in pids)


@_can_be_pickled
def by_pid(*pids: int) -> Filter:
    """Flows of these processes, or on their behalf (effective pid).

    Raises:
        UsageError: One is not the number of a process, or there are none; as for every filter here.
    """
    wanted = frozenset(_each("by_pid", pids, _whole(0, 2**31 - 1), "the number of a process, e.g. 501"))
    return Filter(lambda flow: is_of(flow.process, wanted), f"by_pid({_listed(wanted)})")


@_can_be_pickled
def by_process_name(*names: str) -> Filter:
    """Flows of processes with one of these names (exact, as the kernel has them)."""
    wanted = frozenset(_each("by_process_name", names, _text, "a name, e.g. 'curl'"))
    return Filter(
        lambda flow: flow.process is not None and flow.process.name in wanted, f"by_process_name({_listed(wanted)})"
    )


@_can_be_pickled
def by_uid(*users: int | str) -> Filter:
    """Flows of these users, by number or by name (``"root"``)."""
    wanted = frozenset(_each("by_uid", users, _user, "the number or the name of a user of this machine"))
    return Filter(lambda flow: flow.process is not None and flow.process.uid in wanted, f"by_uid({_listed(wanted)})")


@_can_be_pickled
def by_user(*users: int | str) -> Filter:
    """Flows of these users, by number, or by the name that the flow's machine gives them.

    Where a flow does not say its user's name (`Process.user`), the names are those of this machine.
    """
    wanted = _each("by_user", users, _user_or_name, "the number or the name of a user")
    here = frozenset(_user(user) for user in wanted if isinstance(user, str))

    def matches(flow: Flow) -> bool:
        process = flow.process
        if process is None or process.uid is None:
            return False
        return process.uid in wanted or (process.uid in here if process.user is None else process.user in wanted)

    return Filter(matches, f"by_user({_listed(wanted)})")


@_can_be_pickled
def by_command_line(*parts: str) -> Filter:
    """Flows of processes with one of these texts in their command line, as `Process.command_line` has it (Linux, with ``extras``)."""
    wanted = frozenset(_each("by_command_line", parts, _text, "a part of a command line, e.g. 'celery worker'"))

    def matches(flow: Flow) -> bool:
        line = None if flow.process is None else flow.process.command_line
        return line is not None and any(part in line for part in wanted)

    return Filter(matches, f"by_command_line({_listed(wanted)})", needs_extras=True)


@_can_be_pickled
def by_provider(*providers: Provider | str) -> Filter:
    """Flows of these kinds."""
    wanted = _members("by_provider", Provider, providers)
    return Filter(lambda flow: flow.provider in wanted, f"by_provider({_listed(wanted)})")


@_can_be_pickled
def by_direction(*directions: Direction | str) -> Filter:
    """Flows of these directions."""
    wanted = _members("by_direction", Direction, directions)
    return Filter(lambda flow: flow.direction in wanted, f"by_direction({_listed(wanted)})")


@_can_be_pickled
def by_state(*states: TcpState | str) -> Filter:
    """Flows in these TCP states."""
    wanted = _members("by_state", TcpState, states)
    return Filter(lambda flow: flow.state in wanted, f"by_state({_listed(wanted)})")


@_can_be_pickled
def by_outcome(*outcomes: Outcome | str) -> Filter:
    """Flows that ended in one of these ways: they are seen when they end, as added and removed at once."""
    wanted = _members("by_outcome", Outcome, outcomes)
    return Filter(lambda flow: flow.outcome in wanted, f"by_outcome({_listed(wanted)})")


@_can_be_pickled
def by_interface(*names: str) -> Filter:
    """Flows over the interfaces of these names."""
    wanted = frozenset(_each("by_interface", names, _text, "the name of an interface, e.g. 'en0'"))
    return Filter(
        lambda flow: flow.interface is not None and flow.interface.name in wanted, f"by_interface({_listed(wanted)})"
    )


@_can_be_pickled
def by_interface_kind(*kinds: InterfaceKind | str) -> Filter:
    """Flows over interfaces of these kinds."""
    wanted = _members("by_interface_kind", InterfaceKind, kinds)
    return Filter(
        lambda flow: flow.interface is not None and flow.interface.kind in wanted,
        f"by_interface_kind({_listed(wanted)})",
    )


@_can_be_pickled
def by_port(*ports: int, local: bool = True, remote: bool = True) -> Filter:
    """Flows with one of these ports at either end (or at the end chosen)."""
    wanted = frozenset(_each("by_port", ports, _whole(0, 65_535), "a port from 0 to 65535, e.g. 443"))

    def matches(flow: Flow) -> bool:
        return (local and flow.local is not None and flow.local.port in wanted) or (
            remote and flow.remote is not None and flow.remote.port in wanted
        )

    return Filter(matches, f"by_port({_listed(wanted)})")


@_can_be_pickled
def by_address(*networks: str, local: bool = False, remote: bool = True) -> Filter:
    """Flows whose remote (or local) address lies in one of these networks.

    Args:
        networks: Addresses or networks, e.g. ``"192.0.2.0/24"``.
        local: Look at the local address.
        remote: Look at the remote address.

    Raises:
        UsageError: One of them is no network.
    """

    def network_of(value: Any) -> Any:
        try:
            return ipaddress.ip_network(value, strict=False) if isinstance(value, str) else None
        except ValueError:
            return None

    wanted = _each("by_address", networks, network_of, "an address or a network, e.g. '192.0.2.0/24'")

    def inside(endpoint: Endpoint | None) -> bool:
        if endpoint is None:
            return False
        address = endpoint.ip_address
        return any(address in network for network in wanted)

    return Filter(
        lambda flow: (remote and inside(flow.remote)) or (local and inside(flow.local)),
        f"by_address({_listed(map(str, wanted))})",
    )


@_can_be_pickled
def by_namespace(*names: str) -> Filter:
    """Flows in these network namespaces (Linux), by the names that `Flow.namespace` has."""
    wanted = frozenset(_each("by_namespace", names, _text, "the name of a network namespace"))
    return Filter(lambda flow: flow.namespace in wanted, f"by_namespace({_listed(wanted)})")


@_can_be_pickled
def by_host(*names: str) -> Filter:
    """Flows of these machines of a fleet, by the names that `Flow.host` has."""
    wanted = frozenset(_each("by_host", names, _text, "the name of a machine of the fleet"))
    return Filter(lambda flow: flow.host in wanted, f"by_host({_listed(wanted)})")


@_can_be_pickled
def by_cgroup(*paths: str) -> Filter:
    """Flows of these cgroups (Linux, v2) and of those below them, e.g. ``"/system.slice"``."""
    wanted = frozenset(_each("by_cgroup", paths, _text, "the path of a cgroup, e.g. '/system.slice'"))
    prefixes = tuple(path.rstrip("/") + "/" for path in wanted)
    return Filter(
        lambda flow: flow.cgroup is not None and f"{flow.cgroup}/".startswith(prefixes), f"by_cgroup({_listed(wanted)})"
    )


@_can_be_pickled
def by_unit(*names: str) -> Filter:
    """Flows of these units of systemd (Linux), e.g. ``"nginx.service"``; a name without a suffix is a service's."""
    wanted = frozenset(_each("by_unit", names, _text, "the name of a unit, e.g. 'nginx.service'"))
    units = wanted | {f"{name}.service" for name in wanted}
    return Filter(lambda flow: flow.unit in units, f"by_unit({_listed(wanted)})")


@_can_be_pickled
def by_container(*names: str) -> Filter:
    """Flows of these containers (Linux), by name, by id, or by the first characters of an id, 12 at least."""
    wanted = _each("by_container", names, _text, "the name or the id of a container")
    starts = tuple(name for name in wanted if len(name) >= SHORT_ID)

    def matches(flow: Flow) -> bool:
        if flow.container is None:
            return False
        return flow.container in wanted or (bool(starts) and (flow.container_id or "").startswith(starts))

    return Filter(matches, f"by_container({_listed(wanted)})")


@_can_be_pickled
def by_pod(*names: str) -> Filter:
    """Flows of these Kubernetes pods (Linux), by ``namespace/name`` or by uid."""
    wanted = frozenset(_each("by_pod", names, _text, "a pod as namespace/name, or its uid"))
    return Filter(
        lambda flow: flow.pod is not None and (flow.pod in wanted or flow.pod_uid in wanted),
        f"by_pod({_listed(wanted)})",
    )


@_can_be_pickled
def loopback() -> Filter:
    """Flows that stay on this machine."""
    return Filter(lambda flow: flow.is_loopback, "loopback()")


# --- as text --------------------------------------------------------------------------


def _split(texts: Iterable[str]) -> list[str]:
    """The parts of lists with commas."""
    words = [word.strip() for text in texts for word in text.split(",")]
    if "" in words:
        raise UsageError(f"filter: {', '.join(map(repr, texts))} has nothing where a comma says that something comes")
    return words


def _numbers(make: Callable[..., Filter]) -> Callable[[list[str]], Filter]:
    """The numbers among texts as numbers; what is none stays, for the filter to refuse (or to know, as a user)."""

    def filter_of(texts: list[str]) -> Filter:
        words = _split(texts)
        return make(*(int(word) if len(word) < 20 and word.isascii() and word.isdigit() else word for word in words))

    return filter_of


def _words(make: Callable[..., Filter]) -> Callable[[list[str]], Filter]:
    return lambda texts: make(*_split(texts))


def _whole_texts(make: Callable[..., Filter]) -> Callable[[list[str]], Filter]:
    return lambda texts: make(*texts)


def _loopback_of(texts: list[str]) -> Filter:
    if texts != [""] * len(texts):
        raise UsageError("loopback: it has no value; ask for loopback or ~loopback")
    return loopback()


_KEYS: dict[str, Callable[[list[str]], Filter]] = {
    "pid": _numbers(by_pid),
    "process": _whole_texts(by_process_name),
    "user": _numbers(by_user),
    "cmdline": _whole_texts(by_command_line),
    "provider": _words(by_provider),
    "direction": _words(by_direction),
    "state": _words(by_state),
    "outcome": _words(by_outcome),
    "interface": _whole_texts(by_interface),
    "interface_kind": _words(by_interface_kind),
    "port": _numbers(by_port),
    "address": _words(by_address),
    "namespace": _whole_texts(by_namespace),
    "host": _words(by_host),
    "cgroup": _whole_texts(by_cgroup),
    "unit": _whole_texts(by_unit),
    "container": _whole_texts(by_container),
    "pod": _whole_texts(by_pod),
    "loopback": _loopback_of,
}
_EXAMPLE = "'port=443,80 & ~loopback'"
MAX_ITEMS = 100
"""Conditions that a text may have."""


def _filter_of(key: str, texts: list[str]) -> Filter:
    """The filter of a key. What is wrong with its values is said of the key: whoever wrote it knows no function."""
    try:
        return _KEYS[key](texts)
    except UsageError as error:
        raise UsageError(f"filter: {key}: {str(error).partition(': ')[2]}") from None


def from_items(items: Iterable[tuple[str, str]]) -> Filter | None:
    """A filter of keys and values, as a query string or a command line has them: one meaning for both.

    Values of one key are alternatives; a flow must pass every key. A key with ``~`` before it must not
    pass. Lists with commas (and spaces where you like) are taken apart, except names, which may have commas.

    Args:
        items: Pairs of key and value: ``pid``, ``process``, ``user``, ``cmdline``, ``provider``, ``direction``, ``state``,
            ``outcome``, ``interface``, ``interface_kind``, ``port``, ``address``, ``namespace``, ``host``, ``cgroup``, ``unit``, ``container``,
            ``pod``, and ``loopback`` with an empty value.

    Returns:
        The filter; `None` when there are no items.

    Raises:
        UsageError: A key is unknown, a value is wrong, or there are too many items.
    """
    values: dict[str, list[str]] = {}
    for number, item in enumerate(items):
        if number >= MAX_ITEMS:
            raise UsageError(f"filter: more than {MAX_ITEMS} conditions")
        if not isinstance(item, (tuple, list)) or [type(each) for each in item] != [str, str]:
            raise UsageError(f"filter: {item!r} is no pair of texts")
        key, value = item
        if not key.strip(" ~"):
            raise UsageError(f"filter: there is no key, as in {_EXAMPLE}")
        if key.removeprefix("~") not in _KEYS:
            raise UsageError(f"filter: {key!r} is none of {', '.join(_KEYS)}")
        values.setdefault(key, []).append(value)
    found = None
    for key, texts in values.items():
        name = key.removeprefix("~")
        if "" in texts and _KEYS[name] is not _loopback_of:
            raise UsageError(f"filter: {name} needs a value, as in {_EXAMPLE}")
        each = _filter_of(name, texts)
        each = ~each if key.startswith("~") else each
        found = each if found is None else found & each
    return found


def parse(text: str) -> Filter:
    """A filter of a text such as ``"pid=1,2 & ~loopback"``: the form of a query string, with spaces where you like.

    See `from_items` for the keys. What would be taken apart in a name is written as in a URL (``%26`` for ``&``).

    Raises:
        UsageError: It says nothing, or something unknown.
    """
    if not isinstance(text, str):
        raise UsageError(f"filter: {text!r} is no text such as 'pid=1,2 & ~loopback'")
    items = [part.strip().partition("=") for part in text.split("&")]
    found = from_items((unquote(key.strip()), unquote(value.strip())) for key, _, value in items)
    if found is None:  # pragma: no cover - a split text has at least one part
        raise UsageError("filter: it says nothing")
    return found


class FlowGate:
    """Applies a filter to a stream of events, consistently per flow.

    What a flow counted while it was hidden is not the consumer's: one that was seen
    before, or is older than the monitor, begins to match as ``preexisting``.

    Memory: one id for each open flow that matches, is older than the monitor, or
    matched before.
    """

    def __init__(self, flow_filter: FilterLike) -> None:
        self._filter = as_filter(flow_filter)
        self._visible: set[str] = set()
        self._historic: set[str] = set()
        """Hidden flows whose counters are not new."""

    def __call__(self, events: Iterable[AnyEvent]) -> Sequence[AnyEvent]:
        """The events that pass."""
        passed: list[AnyEvent] = []
        self.sift(events, passed)
        return passed

    def sift(self, events: Iterable[AnyEvent], passed: list[AnyEvent]) -> None:
        """Append the events that pass; what passed before the filter raises stays appended."""
        for event in events:
            if isinstance(event, FlowRemoved):
                self._removed(event, passed)
            elif isinstance(event, (FlowAdded, FlowUpdated)):
                changed = self._flow_event(event)
                if changed is not None:
                    passed.append(changed)
            else:
                passed.append(event)

    def _removed(self, event: FlowRemoved, passed: list[AnyEvent]) -> None:
        """A flow ended; how it ended may be what it is looked for by."""
        flow = event.flow
        known, old = flow.id in self._visible, flow.id in self._historic
        self._visible.discard(flow.id)
        self._historic.discard(flow.id)
        if not known and flow.outcome is not None and self._filter(flow):
            passed.append(FlowAdded(event.time, flow, event.counts, preexisting=old, details=event.raw_details))
            known = True
        if known:
            passed.append(event)

    def _flow_event(self, event: FlowAdded | FlowUpdated) -> AnyEvent | None:
        flow = event.flow
        known = flow.id in self._visible
        matches = self._filter(flow)
        if matches and not known:
            self._visible.add(flow.id)
            if isinstance(event, FlowUpdated):
                old = flow.id in self._historic
                self._historic.discard(flow.id)
                return FlowAdded(event.time, flow, event.counts, preexisting=old, details=event.raw_details)
        elif known and not matches:
            self._visible.discard(flow.id)
            self._historic.add(flow.id)
            return FlowRemoved(event.time, flow, event.counts, final=False, reason=RemovalReason.FILTERED)
        elif not matches and isinstance(event, FlowAdded) and event.preexisting:
            self._historic.add(flow.id)
        return event if matches else None
