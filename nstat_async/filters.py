"""Filters on flows: values that combine with ``&``, ``|`` and ``~``.

    Monitor(flow_filter=by_pid(42) & ~loopback())

A filter looks at a `Flow`; any callable that takes a flow and returns a bool works as
a filter too. `parse` makes one of a text; the command line and the web server use the same keys.
A flow may change while it lives (its address is bound, its owner changes). So `FlowGate`
tracks it: a consumer sees the flow as added when it begins to match, and as removed
(``reason=FILTERED``) when it ceases to.

Flows are filtered here and not in the kernel: Darwin's kernel filters suppress
reports, not sources, and hide losses (see ``docs/ntstat.md``).
"""

from __future__ import annotations

import enum
import importlib
import ipaddress
from collections.abc import Callable, Container, Iterable, Sequence
from functools import partial
from operator import and_, attrgetter, invert, or_
from typing import Any, TypeVar, Union
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
"""Number of characters of a container's id that its engine shows."""


@attrs.frozen(repr=False)
class Filter:
    """A condition on flows. Filters made with the functions of this module, and combinations of them, can be pickled."""

    predicate: Predicate = attrs.field(eq=False)
    """The condition as a function of a `Flow`."""
    text: str
    """The condition in words, for messages and `repr`."""
    remake: Callable[[], Any] | None = attrs.field(default=None, eq=False, kw_only=True)
    """Makes the filter again: a pickle has this instead of the predicate. `None`: the predicate itself is pickled."""
    conditions: frozenset[tuple[str, str]] = attrs.field(default=frozenset(), eq=False, kw_only=True)
    """What it looks for, as keys and values of `from_items`: with ``~`` before the key, what it excludes. A function of
    one's own is not among them."""

    @property
    def needs_extras(self) -> bool:
        """True if it looks at fields that are known with ``extras`` only (on Linux)."""
        return any(key.endswith("cmdline") for key, _ in self.conditions)

    def __call__(self, flow: Flow) -> bool:
        """True if the flow matches."""
        return self.predicate(flow)

    def __and__(self, other: FilterLike) -> Filter:
        left, right = self.predicate, as_filter(other).predicate
        return self._with(other, lambda flow: left(flow) and right(flow), "&", and_)

    def __or__(self, other: FilterLike) -> Filter:
        left, right = self.predicate, as_filter(other).predicate
        return self._with(other, lambda flow: left(flow) or right(flow), "|", or_)

    def _with(self, given: FilterLike, predicate: Predicate, sign: str, join: Callable[..., Filter]) -> Filter:
        other = as_filter(given)
        text, conditions = f"({self.text} {sign} {other.text})", self.conditions | other.conditions
        return Filter(predicate, text, remake=partial(join, self, other), conditions=conditions)

    def __bool__(self) -> bool:
        raise UsageError(
            f"filter: {self!r} is neither true nor false: combine filters with &, | and ~, not with and, or, not"
        )

    def __invert__(self) -> Filter:
        again, matches = partial(invert, self), self.predicate
        others = frozenset((key[1:] if key[0] == "~" else f"~{key}", value) for key, value in self.conditions)
        return Filter(lambda flow: not matches(flow), f"~{self.text}", remake=again, conditions=others)

    __rand__ = __and__
    __ror__ = __or__

    def __repr__(self) -> str:
        return f"<Filter {self.text}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return (Filter, (self.predicate, self.text)) if self.remake is None else (self.remake, ())


FilterLike = Union[Filter, Predicate]


def as_filter(value: FilterLike) -> Filter:
    """Make a filter of a filter or a predicate.

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
        UsageError: It is not a plain function: what an ``async def`` returns is always true.
    """
    check_predicate("matching", predicate)
    return Filter(predicate, getattr(predicate, "__name__", "predicate"))


# --- what may be asked for ------------------------------------------------------------

_T = TypeVar("_T")
_Check = Callable[[Any], Union[_T, None]]
"""Converts an argument to a value of the filter; `None` if it cannot be one."""


def _each(make: Callable[..., Filter], given: Iterable[Any], check: _Check[_T], right: str) -> tuple[_T, ...]:
    """The checked values of a filter.

    Raises:
        UsageError: There are no values, or one is wrong.
    """
    found = []
    for value in given:
        good = check(value)
        if good is None:
            raise UsageError(f"{make.__name__}: {value!r} is not {right}")
        found.append(good)
    if not found:
        raise UsageError(f"{make.__name__}: give at least one: {right}")
    return tuple(found)


def _filter(again: partial[Filter], wanted: Iterable[object], predicate: Predicate) -> Filter:
    """A filter that can say, and pickle, how it was made."""
    values = [getattr(value, "value", value) for value in wanted]
    conditions = frozenset(
        (key, str(value)) for key, (make, _) in _KEYS.items() if make == again.func for value in values
    )
    shown = ", ".join(sorted(map(repr, values)))
    return Filter(predicate, f"{again.func.__name__}({shown})", remake=again, conditions=conditions)


def _one_of(
    make: Callable[..., Filter], given: tuple[Any, ...], check: _Check[_T], right: str, read: Callable[[Flow], Any]
) -> Filter:
    """Flows for which `read` returns one of these values."""
    wanted = frozenset(_each(make, given, check, right))
    return _filter(partial(make, *given), wanted, lambda flow: read(flow) in wanted)


def _whole(least: int, most: int) -> _Check[int]:
    return lambda value: value if type(value) is int and least <= value <= most else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _member_of(kind: type[enum.Enum]) -> tuple[_Check[enum.Enum], str]:
    """A check of an enumeration's members, given as members or values, and a text that lists the right ones."""
    known: dict[Any, enum.Enum] = {member.value: member for member in kind} | {member: member for member in kind}
    words = ", ".join(str(member.value) for member in kind)
    return lambda value: known.get(value) if isinstance(value, (str, kind)) else None, f"one of {words}"


_user_id = _whole(0, 2**32 - 1)


def _user(value: Any) -> int | None:
    """A user id, by number or name."""
    if not isinstance(value, str):
        return _user_id(value)
    try:
        return importlib.import_module("pwd").getpwnam(value).pw_uid  # type: ignore[no-any-return]
    except (ImportError, KeyError, ValueError):  # no such user, or a system without users
        return None


def _user_or_name(value: Any) -> int | str | None:
    """A user id or name; a text of digits is refused, because it is probably meant as an id."""
    if isinstance(value, str):
        return value if value.isprintable() and value[:1] not in {"", "-"} and not value.isdecimal() else None
    return _user_id(value)


# --- the filters ----------------------------------------------------------------------


def is_of(process: Process | None, pids: Container[int]) -> bool:
    """True for a process with one of these ids, or one that acts on behalf of such a process."""
    return process is not None and (process.pid in pids or process.effective_pid in pids)


def by_pid(*pids: int) -> Filter:
    """Flows of these processes, or on their behalf (effective pid).

    Raises:
        UsageError: A value is not a process id, or there are no values. Every filter here checks its values.
    """
    wanted = frozenset(_each(by_pid, pids, _whole(0, 2**31 - 1), "the number of a process, e.g. 501"))
    return _filter(partial(by_pid, *pids), wanted, lambda flow: is_of(flow.process, wanted))


def by_process_name(*names: str) -> Filter:
    """Flows of processes with one of these names, exactly as `Process.name` has them, or `Process.title`, as of scripts."""
    wanted = frozenset(_each(by_process_name, names, _text, "a name, e.g. 'curl'"))

    def matches(flow: Flow) -> bool:
        process = flow.process
        return process is not None and (process.name in wanted or process.title in wanted)

    return _filter(partial(by_process_name, *names), wanted, matches)


def by_uid(*users: int | str) -> Filter:
    """Flows of these users, by number or by name (``"root"``)."""
    right = "the number or the name of a user of this machine"
    return _one_of(by_uid, users, _user, right, lambda flow: flow.process and flow.process.uid)


def by_user(*users: int | str) -> Filter:
    """Flows of these users, by number, or by the name on the flow's machine.

    If a flow does not have its user's name (`Process.user`), the names are those of this machine.
    """
    wanted: tuple[int | str, ...] = _each(by_user, users, _user_or_name, "the number or the name of a user")
    here = frozenset(_user(user) for user in wanted if isinstance(user, str))

    def matches(flow: Flow) -> bool:
        process = flow.process
        if process is None or process.uid is None:
            return False
        return process.uid in wanted or (process.uid in here if process.user is None else process.user in wanted)

    return _filter(partial(by_user, *users), wanted, matches)


def by_command_line(*parts: str) -> Filter:
    """Flows of processes with one of these texts in their command line, as `Process.command_line` has it (Linux, with ``extras``)."""
    wanted = frozenset(_each(by_command_line, parts, _text, "a part of a command line, e.g. 'celery worker'"))

    def matches(flow: Flow) -> bool:
        line = None if flow.process is None else flow.process.command_line
        return line is not None and any(part in line for part in wanted)

    return _filter(partial(by_command_line, *parts), wanted, matches)


def by_provider(*providers: Provider | str) -> Filter:
    """Flows of these kinds."""
    return _one_of(by_provider, providers, *_member_of(Provider), attrgetter("provider"))


def by_direction(*directions: Direction | str) -> Filter:
    """Flows of these directions."""
    return _one_of(by_direction, directions, *_member_of(Direction), attrgetter("direction"))


def by_state(*states: TcpState | str) -> Filter:
    """Flows in these TCP states."""
    return _one_of(by_state, states, *_member_of(TcpState), attrgetter("state"))


def by_outcome(*outcomes: Outcome | str) -> Filter:
    """Flows that ended in one of these ways: they appear when they end, as added and removed together."""
    return _one_of(by_outcome, outcomes, *_member_of(Outcome), attrgetter("outcome"))


def by_interface(*names: str) -> Filter:
    """Flows over interfaces with these names."""
    right = "the name of an interface, e.g. 'en0'"
    return _one_of(by_interface, names, _text, right, lambda flow: flow.interface and flow.interface.name)


def by_interface_kind(*kinds: InterfaceKind | str) -> Filter:
    """Flows over interfaces of these kinds."""
    check, right = _member_of(InterfaceKind)
    return _one_of(by_interface_kind, kinds, check, right, lambda flow: flow.interface and flow.interface.kind)


def by_port(*ports: int, local: bool = True, remote: bool = True) -> Filter:
    """Flows with one of these ports at either end (or at the chosen end)."""
    wanted = frozenset(_each(by_port, ports, _whole(0, 65_535), "a port from 0 to 65535, e.g. 443"))

    def matches(flow: Flow) -> bool:
        return (local and flow.local is not None and flow.local.port in wanted) or (
            remote and flow.remote is not None and flow.remote.port in wanted
        )

    return _filter(partial(by_port, *ports, local=local, remote=remote), wanted, matches)


def _network(value: Any) -> Any:
    """A network; one of IPv4-mapped addresses is that of the IPv4 addresses."""
    try:
        network = ipaddress.ip_network(value, strict=False) if isinstance(value, str) else None
    except ValueError:
        return None
    mapped = getattr(network and network.network_address, "ipv4_mapped", None)
    if network is None or mapped is None or network.prefixlen < 96:
        return network
    return ipaddress.ip_network((int(mapped), network.prefixlen - 96))


def by_address(*networks: str, local: bool = False, remote: bool = True) -> Filter:
    """Flows whose remote (or local) address lies in one of these networks.

    Args:
        networks: Addresses or networks, e.g. ``"192.0.2.0/24"``. One with a zone, as in ``"fe80::1%eth0"`` or ``"fe80::%3/64"``,
            is that of this link only. A dual-stack socket's ``::ffff:192.0.2.1`` is also in ``"192.0.2.0/24"``,
            and ``192.0.2.1`` in ``"::ffff:192.0.2.0/120"``.
        local: Look at the local address.
        remote: Look at the remote address.

    Raises:
        UsageError: One of them is not a network, or its zone is not an interface of this machine.
    """
    wanted = _each(by_address, networks, _network, "an address or a network, e.g. '192.0.2.0/24'")
    places = [(network, Endpoint.parse(str(network.network_address)).scope_id) for network in wanted]

    def inside(endpoint: Endpoint | None) -> bool:
        if endpoint is None:
            return False
        address = endpoint.ip_address
        mapped = getattr(address, "ipv4_mapped", None)
        return any(
            (address in network or (mapped is not None and mapped in network))
            and (not zone or zone == endpoint.scope_id)
            for network, zone in places
        )

    def matches(flow: Flow) -> bool:
        return (remote and inside(flow.remote)) or (local and inside(flow.local))

    return _filter(partial(by_address, *networks, local=local, remote=remote), map(str, wanted), matches)


def by_namespace(*names: str) -> Filter:
    """Flows in these network namespaces (Linux), by the names that `Flow.namespace` has."""
    return _one_of(by_namespace, names, _text, "the name of a network namespace", attrgetter("namespace"))


def by_host(*names: str) -> Filter:
    """Flows of these machines of a fleet, by the names that `Flow.host` has."""
    return _one_of(by_host, names, _text, "the name of a machine of the fleet", attrgetter("host"))


def by_cgroup(*paths: str) -> Filter:
    """Flows of these cgroups (Linux, v2) and the cgroups below them, e.g. ``"/system.slice"``; the slash before it may be left out."""
    wanted = frozenset(_each(by_cgroup, paths, _text, "the path of a cgroup, e.g. '/system.slice'"))
    prefixes = tuple(f"/{path.strip('/')}/".replace("//", "/") for path in wanted)  # of all cgroups: "/"

    def matches(flow: Flow) -> bool:
        return flow.cgroup is not None and f"{flow.cgroup}/".startswith(prefixes)

    return _filter(partial(by_cgroup, *paths), wanted, matches)


def by_unit(*names: str) -> Filter:
    """Flows of these units of systemd (Linux), e.g. ``"nginx.service"``; a name without a suffix means a service."""
    wanted = frozenset(_each(by_unit, names, _text, "the name of a unit, e.g. 'nginx.service'"))
    units = wanted | {f"{name}.service" for name in wanted}
    return _filter(partial(by_unit, *names), wanted, lambda flow: flow.unit in units)


def by_container(*names: str) -> Filter:
    """Flows of these containers (Linux), by name, by id, or by at least the first 12 characters of an id."""
    wanted = _each(by_container, names, _text, "the name or the id of a container")
    starts = tuple(name for name in wanted if len(name) >= SHORT_ID)

    def matches(flow: Flow) -> bool:
        if flow.container is None:
            return False
        return flow.container in wanted or (bool(starts) and (flow.container_id or "").startswith(starts))

    return _filter(partial(by_container, *names), wanted, matches)


def by_pod(*names: str) -> Filter:
    """Flows of these Kubernetes pods (Linux), by ``namespace/name`` or by uid."""
    wanted = frozenset(_each(by_pod, names, _text, "a pod as namespace/name, or its uid"))

    def matches(flow: Flow) -> bool:
        return flow.pod is not None and (flow.pod in wanted or flow.pod_uid in wanted)

    return _filter(partial(by_pod, *names), wanted, matches)


def loopback() -> Filter:
    """Flows that stay on this machine."""
    return _filter(partial(loopback), (), lambda flow: flow.is_loopback)


# --- as text --------------------------------------------------------------------------


def _split(texts: Iterable[str]) -> list[str]:
    """The items of comma-separated lists."""
    words = [word.strip() for text in texts for word in text.split(",")]
    if "" in words:
        raise UsageError(f"filter: {', '.join(map(repr, texts))} has a comma with no value beside it")
    return words


def _numbers(texts: list[str]) -> list[int | str]:
    """Texts as numbers; other texts stay, and the filter refuses them, or takes them as names of users."""
    return [int(word) if len(word) < 20 and word.isascii() and word.isdigit() else word for word in _split(texts)]


def _whole_texts(texts: list[str]) -> list[str]:
    return texts


def _nothing(texts: list[str]) -> list[str]:
    if texts != [""] * len(texts):
        raise UsageError("loopback: it takes no value; write loopback or ~loopback")
    return []


_KEYS: dict[str, tuple[Callable[..., Filter], Callable[[list[str]], Sequence[Any]]]] = {
    "pid": (by_pid, _numbers),
    "process": (by_process_name, _whole_texts),
    "user": (by_user, _numbers),
    "cmdline": (by_command_line, _whole_texts),
    "provider": (by_provider, _split),
    "direction": (by_direction, _split),
    "state": (by_state, _split),
    "outcome": (by_outcome, _split),
    "interface": (by_interface, _whole_texts),
    "interface_kind": (by_interface_kind, _split),
    "port": (by_port, _numbers),
    "address": (by_address, _split),
    "namespace": (by_namespace, _whole_texts),
    "host": (by_host, _split),
    "cgroup": (by_cgroup, _whole_texts),
    "unit": (by_unit, _whole_texts),
    "container": (by_container, _whole_texts),
    "pod": (by_pod, _whole_texts),
    "loopback": (loopback, _nothing),
}
"""The filter of each key, and how its texts become the filter's values."""
_EXAMPLE = "'port=443,80 & ~loopback'"
MAX_ITEMS = 100
"""Most conditions in a text."""


def _filter_of(key: str, texts: list[str]) -> Filter:
    """The filter of a key. Its errors name the key, because the user of a text does not know the functions."""
    make, values = _KEYS[key]
    try:
        return make(*values(texts))
    except UsageError as error:
        raise UsageError(f"filter: {key}: {str(error).partition(': ')[2]}") from None


def from_items(items: Iterable[tuple[str, str]]) -> Filter | None:
    """Make a filter of keys and values, as a query string or a command line has them.

    Values of one key are alternatives. A flow must match every key, and must not match a key with ``~`` before it.
    Values may be comma-separated lists, with spaces; names are not split, because they may have commas.

    Args:
        items: Pairs of key and value: ``pid``, ``process``, ``user``, ``cmdline``, ``provider``, ``direction``, ``state``,
            ``outcome``, ``interface``, ``interface_kind``, ``port``, ``address``, ``namespace``, ``host``, ``cgroup``, ``unit``, ``container``,
            ``pod``, and ``loopback`` with an empty value.

    Returns:
        The filter; `None` if there are no items.

    Raises:
        UsageError: A key is unknown, a value is wrong, or there are too many items.
    """
    if not isinstance(items, Iterable):
        raise UsageError(f"filter: {items!r} is not a list of pairs of texts")
    values: dict[str, list[str]] = {}
    for number, item in enumerate(items):
        if number >= MAX_ITEMS:
            raise UsageError(f"filter: more than {MAX_ITEMS} conditions")
        if not isinstance(item, (tuple, list)) or [type(each) for each in item] != [str, str]:
            raise UsageError(f"filter: {item!r} is not a pair of texts")
        key, value = item
        if not key.strip(" ~"):
            raise UsageError(f"filter: there is no key, as in {_EXAMPLE}")
        if key.removeprefix("~") not in _KEYS:
            form = "" if value else "a condition is KEY=VALUE, and "
            raise UsageError(f"filter: {form}{key!r} is not one of {', '.join(_KEYS)}")
        values.setdefault(key, []).append(value)
    found = None
    for key, texts in values.items():
        name = key.removeprefix("~")
        if "" in texts and name != "loopback":
            raise UsageError(f"filter: {name} needs a value, as in {_EXAMPLE}")
        each = _filter_of(name, texts)
        each = ~each if key.startswith("~") else each
        found = each if found is None else found & each
    return found


_LINUX_KEYS = ("cmdline", "namespace", "cgroup", "unit", "container", "pod")
_NEVER = {"sock_diag": ("host",), **dict.fromkeys(("kctl", "emulated", "unix"), ("host", *_LINUX_KEYS))}
"""Keys of which flows never have a value, by the name of the backend."""


def check_reach(chosen: Filter, backend: str, providers: Container[Provider]) -> None:
    """Refuse to look for what no flow of a backend ever has: it would match nothing, which looks like silence.

    To exclude it is as good there as anywhere.

    Args:
        chosen: The filter.
        backend: `Capabilities.backend`. Of a recording and a fleet nothing is known in advance.
        providers: Kinds of flows that are asked for.

    Raises:
        UsageError: The filter has such a condition; the text names the remedy.
    """
    never = _NEVER.get(backend)
    if never is None:
        return
    for key, value in sorted(chosen.conditions):
        if key in never:
            raise UsageError(f"filter: {key}: only flows of {'a fleet' if key == 'host' else 'Linux'} have one")
        if key == "provider" and Provider(value) not in providers:
            raise UsageError(
                f"filter: provider: {value} flows are not asked for; --provider {value} does, in a program Monitor(providers=…)"
            )


def unknown_users(chosen: Filter) -> list[str]:
    """The names of users in a filter that this machine does not know."""
    names = sorted(value for key, value in chosen.conditions if key.endswith("user") and not value.isdecimal())
    return [name for name in names if _user(name) is None]


def _key(text: str) -> str:
    key = text.strip()
    return unquote(f"~{key[1:].lstrip()}" if key.startswith("~") else key)


def parse(text: str) -> Filter:
    """Make a filter of a text such as ``"pid=1,2 & ~loopback"``: a query string, in which spaces are allowed.

    See `from_items` for the keys. Characters with a meaning are escaped in names as in a URL (``%26`` for ``&``).

    Raises:
        UsageError: The text is empty, or has an unknown key or a wrong value.
    """
    if not isinstance(text, str):
        raise UsageError(f"filter: {text!r} is not a text such as 'pid=1,2 & ~loopback'")
    items = [part.strip().partition("=") for part in text.split("&")]
    found = from_items((_key(key), unquote(value.strip())) for key, _, value in items)
    if found is None:  # pragma: no cover - a split text has at least one part
        raise UsageError("filter: it is empty")
    return found


class FlowGate:
    """Applies a filter to a stream of events, so that each flow is added, updated and removed in order.

    Traffic of a flow while it does not match is not the consumer's: a flow that was seen
    before, or is older than the monitor, is ``preexisting`` when it begins to match.

    Memory: one id for each open flow that matches, matched before, or is older than the monitor.
    """

    def __init__(self, flow_filter: FilterLike) -> None:
        self._matches = as_filter(flow_filter).predicate
        self._visible: set[str] = set()
        self._historic: set[str] = set()
        """Flows that do not match now, and will be ``preexisting`` if they do."""

    def _continue_from(self, other: FlowGate) -> None:
        """Know what another gate hides, which this one's events passed before: these flows are ``preexisting`` when they match."""
        self._historic |= other._historic

    def __call__(self, events: Iterable[AnyEvent]) -> Sequence[AnyEvent]:
        """The events that pass."""
        passed: list[AnyEvent] = []
        self.sift(events, passed)
        return passed

    def sift(self, events: Iterable[AnyEvent], passed: list[AnyEvent]) -> None:
        """Append the events that pass; if the filter raises, those before it stay appended."""
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
        """A flow ended, and may match only now: by its outcome, or by a process that was concluded at its end."""
        flow = event.flow
        known, old = flow.id in self._visible, flow.id in self._historic
        self._visible.discard(flow.id)
        self._historic.discard(flow.id)
        if not known and self._matches(flow):
            passed.append(FlowAdded(event.time, flow, event.counts, preexisting=old, details=event.raw_details))
            known = True
        if known:
            passed.append(event)

    def _flow_event(self, event: FlowAdded | FlowUpdated) -> AnyEvent | None:
        flow = event.flow
        known = flow.id in self._visible
        matches = self._matches(flow)
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
