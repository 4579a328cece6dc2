"""What a table can group by.

A `GroupBy` turns a flow into a key, or into `None` if the platform does not report
the key. It is called once for each new value of a flow, not for each report.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Hashable
from typing import Union

import attrs

from nstat_async._checks import check_number
from nstat_async._errors import UsageError
from nstat_async._fields import TABLE, Field, FieldTable
from nstat_async._model import Details, Endpoint, Flow, Process, unmapped

ProcessKey = tuple[int, Union[int, None]]
"""Process id and `Process.unique_pid`."""

_OF_ONE_MACHINE = frozenset({"cgroup", "network namespace", "parent process"})
"""Groupings whose numbers and names are valid on one machine only."""


def _owner(flow: Flow) -> Process | None:
    return flow.process


def _effective(flow: Flow) -> Process | None:
    process = flow.process
    if process is None or process.effective_pid is None or process.effective_pid == process.pid:
        return process
    return Process(
        process.effective_pid,
        None,
        process.effective_unique_pid,
        uuid=process.effective_uuid,
    )


def _address(endpoint: Endpoint | None) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    if endpoint is None or endpoint.is_unspecified:
        return None
    packed = endpoint.packed
    if endpoint.scope_id and len(packed) == 16:
        # fe80::1 is another machine on each link.
        return ipaddress.ip_address(f"{endpoint.address}%{endpoint.scope_id}")
    return ipaddress.ip_address(unmapped(packed))


def _never(_old: Hashable, _new: Hashable) -> bool:
    return False


def _learned_unique_pid(old: Hashable, new: Hashable) -> bool:
    return isinstance(old, tuple) and isinstance(new, tuple) and old[1] is None and old[0] == new[0]


def _learned_program(old: Flow, new: Flow) -> bool:
    """True if the executable of a process is known now: until then its title was its name."""
    before, now = old.process, new.process
    if before is None or now is None or before.key != now.key:
        return False
    return before.path is None and now.path is not None


def _no_more(_old: Flow, _new: Flow) -> bool:
    return False


def _always(_old: Hashable, _new: Hashable) -> bool:
    return True


def _connection_text(flow: Flow) -> str:
    process = "" if flow.process is None else f"  {flow.process.name or flow.process.pid}"
    return f"{flow.provider.value} {flow.local or '*'} > {flow.remote or '*'}{process}"


def _prefix(name: str, value: int, bits: int) -> int:
    check_number(name, value, whole=True, least=0, most=bits)
    return value


def _groupings(table: FieldTable) -> dict[str, tuple[str | None, Field]]:
    """The groupings of the table of fields, by name: the part of the flow that has the field (`None`: the flow), and the field."""
    found: dict[str, tuple[str | None, Field]] = {}
    parts = {field.kind.record: field.name for field in table.of(Flow).fields if field.kind.record is not Endpoint}
    parts |= {table.of(Details).cls: "details"}
    for record in table.records:
        owner = next((parts[base] for base in record.cls.__mro__ if base in parts), None)
        if owner is not None or record is table.of(Flow):
            found.update({field.group: (owner, field) for field in record.fields if field.group})
    return found


@attrs.frozen(kw_only=True)
class GroupBy:
    """A way to group flows; make one with the class methods."""

    name: str
    """What the keys are, for a person: ``"process"``, ``"remote network"``."""
    key: Callable[[Flow, Details | None], Hashable]
    """The key of a flow; `None` if it is not known."""
    process_of: Callable[[Flow], Process | None] | None = None
    """The process that a row stands for, if keys are processes."""
    refines: Callable[[Hashable, Hashable], bool] = _never
    """Says whether a flow's new key means the same as its old one, only more exactly. The
    flow's earlier traffic then moves to the new key; otherwise it stays with the old one."""
    learns: Callable[[Flow, Flow], bool] = _no_more
    """Says the same of a flow's old and new value, for keys that do not tell it."""
    needs_details: bool = False
    """True if the key is read from an event's details."""
    text: Callable[[Flow], str | None] | None = None
    """Reads the name of the key, for people, from a flow that has it; `None`: the key itself is shown."""
    per_host: bool = False
    """True if equal keys on two machines of a fleet are different things, such as process ids: each
    machine then has rows of its own, and `Row.source` names it."""

    @classmethod
    def processes(cls, *, effective: bool = False) -> GroupBy:
        """By process: ``(pid, unique_pid)``.

        Args:
            effective: Attribute a flow to the process on whose behalf it exists
                (Darwin's effective process) rather than to the socket's owner.
        """
        find = _effective if effective else _owner

        def key(flow: Flow, _details: Details | None) -> Hashable:
            process = find(flow)
            return None if process is None else process.key

        name = "effective process" if effective else "process"
        return cls(name=name, key=key, process_of=find, refines=_learned_unique_pid, per_host=True)

    @classmethod
    def function(cls, function: Callable[[Flow], Hashable], name: str = "key") -> GroupBy:
        """By your own function of a flow, which returns a hashable key, or `None` if that is unknown."""
        return cls(name=name, key=lambda flow, _details: function(flow))

    @classmethod
    def field(cls, name: str) -> GroupBy:
        """By a field of the flow, its process, its interface or the details of its reports.

        Args:
            name: Name of the grouping in the table of fields, e.g. ``"user"``, ``"state"``, ``"network namespace"``.

        Raises:
            UsageError: There is no such grouping.
        """
        found = _groupings(TABLE).get(name) if isinstance(name, str) else None
        if found is None:
            raise UsageError(f"GroupBy: {name!r} is not one of {', '.join(_groupings(TABLE))}")
        owner, field = found
        per_host = name in _OF_ONE_MACHINE
        if owner == "details":
            return cls(
                name=name,
                key=lambda _flow, details: None if details is None else field.value_of(details),
                needs_details=True,
                per_host=per_host,
            )
        if owner is None:
            return attrs.evolve(cls.function(field.value_of, name), per_host=per_host)

        def of_part(flow: Flow) -> Hashable:
            part = getattr(flow, owner)
            key: Hashable = None if part is None else field.value_of(part)
            return key

        learns = _learned_program if owner == "process" else _no_more
        return attrs.evolve(cls.function(of_part, name), learns=learns, per_host=per_host)

    @classmethod
    def named(cls, name: str) -> GroupBy:
        """By a name in `names`, as for ``--by`` of the command and ``?group=`` of the web server.

        Args:
            name: The name; words may be separated by spaces, hyphens or underscores: ``"remote address"``, ``"remote-address"``.

        Raises:
            UsageError: There is no such name.
        """
        words = str(name).replace("-", " ").replace("_", " ")
        made = _MADE.get(words)
        if made is not None:
            return made()
        if words not in _groupings(TABLE):
            raise UsageError(f"group: {name!r} is not one of {', '.join(cls.names())}")
        return cls.field(words)

    @staticmethod
    def names() -> tuple[str, ...]:
        """All names that `named` takes: the usual ones first, then those of fields with a grouping."""
        return tuple(word.replace(" ", "-") for word in dict.fromkeys([*_MADE, *_groupings(TABLE)]))

    @classmethod
    def process_name(cls) -> GroupBy:
        """By `Process.name`.

        On Linux that is the executable's, which stays whatever title a program gives itself: `named` groups by ``"process title"``.
        If a flow's name changes (``execve``), its earlier traffic stays with the old one. Where the executable becomes known
        after the flow, as with eBPF programs, the traffic until then moves from the title to the name.
        """
        return cls.field("process name")

    @classmethod
    def user(cls) -> GroupBy:
        """By user id; `Row.name` is the user's name, if the machine tells it."""
        return attrs.evolve(cls.field("user"), text=lambda flow: None if flow.process is None else flow.process.user)

    @classmethod
    def remote_address(cls) -> GroupBy:
        """By the peer's address, as an object of `ipaddress`; listeners and unconnected sockets have none."""
        return cls.function(lambda flow: _address(flow.remote), "remote address")

    @classmethod
    def remote_network(cls, ipv4_prefix: int = 24, ipv6_prefix: int = 48) -> GroupBy:
        """By the peer's network.

        Raises:
            UsageError: A prefix length is out of range.
        """
        lengths = {4: _prefix("ipv4_prefix", ipv4_prefix, 32), 6: _prefix("ipv6_prefix", ipv6_prefix, 128)}

        def key(flow: Flow) -> Hashable:
            address = _address(flow.remote)
            if address is None:
                return None
            return ipaddress.ip_network((address, lengths[address.version]), strict=False)

        return cls.function(key, "remote network")

    @classmethod
    def remote_port(cls) -> GroupBy:
        """By the peer's port."""
        return cls.function(lambda flow: flow.remote.port or None if flow.remote else None, "remote port")

    @classmethod
    def local_port(cls) -> GroupBy:
        """By the port of this side."""
        return cls.function(lambda flow: flow.local.port or None if flow.local else None, "local port")

    @classmethod
    def connection(cls) -> GroupBy:
        """By protocol, both ends and process, as text, like connections in other tools."""
        return cls(name="connection", key=lambda flow, _details: _connection_text(flow), refines=_always)

    @classmethod
    def interface_kind(cls) -> GroupBy:
        """By `InterfaceKind`. If a flow moves to another interface, its earlier traffic stays with the old one."""
        return cls.field("interface kind")

    @classmethod
    def interface(cls) -> GroupBy:
        """By the interface's name, or its index if only that is known."""

        def key(flow: Flow, _details: Details | None) -> Hashable:
            return (flow.interface.name or flow.interface.index) if flow.interface else None

        return cls(name="interface", key=key, per_host=True)

    @classmethod
    def provider(cls) -> GroupBy:
        """By `Provider`."""
        return cls.field("provider")

    @classmethod
    def cgroup(cls) -> GroupBy:
        """By cgroup v2 id (Linux; from the events' details)."""
        return cls.field("cgroup")

    @classmethod
    def host(cls) -> GroupBy:
        """By the machine of a fleet; flows of this machine have none."""
        return cls.field("host")

    @classmethod
    def unit(cls) -> GroupBy:
        """By unit of systemd (Linux), which may be known where the process is not."""
        return cls.field("unit")

    @classmethod
    def container(cls) -> GroupBy:
        """By container (Linux): its name, or its id if the name is not known; `None` outside of containers."""
        return cls.field("container")

    @classmethod
    def pod(cls) -> GroupBy:
        """By Kubernetes pod (Linux): ``namespace/name``, or its uid if the name is not known."""
        return cls.field("pod")

    @classmethod
    def flow(cls) -> GroupBy:
        """By flow: the rates of single flows, e.g. of one process."""
        return cls.field("flow")


_MADE: dict[str, Callable[[], GroupBy]] = {
    "process": GroupBy.processes,
    "user": GroupBy.user,
    "remote address": GroupBy.remote_address,
    "remote network": GroupBy.remote_network,
    "remote port": GroupBy.remote_port,
    "local port": GroupBy.local_port,
    "interface": GroupBy.interface,
    "connection": GroupBy.connection,
}
"""Groupings by name that are not just one field of the table."""
