"""What a test scripts: the flows of the emulated machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from nstat_async._model import Endpoint, Provider

from ._flows import COUNTERS, Address, EmulatedFlow
from ._machine import OWNER_FIELDS, Machine
from ._values import check_fields, endpoint, field_value, flag, instance, one_of, text, wholes

_ESTABLISHED = 4
_SERVER = ("198.51.100.7", 443)


class ScriptedMachine(Machine):
    """The part of an emulated kernel that makes flows and keeps them."""

    _flows: dict[int, dict[int, EmulatedFlow]]
    _interface_flows: dict[int, EmulatedFlow]
    announce: Callable[[EmulatedFlow], None]

    # The flows there are

    def flows(self) -> Iterator[EmulatedFlow]:
        """All open flows, oldest first."""
        with self.lock:
            everything = [flow for flows in self._flows.values() for flow in flows.values() if flow.open]
        return iter(sorted(everything, key=lambda flow: flow.number))

    def warm_up(self) -> None:
        """Encode every flow now, so that a benchmark of a client's first poll does not measure the encoding."""
        with self.lock:
            for flow in self.flows():
                flow.encoded_counts()
                flow.prepare()

    def existing(self, provider_id: int) -> list[EmulatedFlow]:
        """The flows that a scan of a provider finds: newest first, without those that are ending."""
        if self.release.providers[provider_id][0] is Provider.ROUTE:
            return self.existing_routes()
        return [flow for flow in reversed(self._flows[provider_id].values()) if flow.open and not flow.gone]

    def existing_routes(self) -> list[EmulatedFlow]:
        """The routes in the order of their destinations, as the tree is walked."""
        numbers = self.release.provider_numbers(Provider.ROUTE)
        routes = [flow for number in numbers for flow in self._flows[number].values() if not flow.gone]
        return sorted(routes, key=lambda flow: bytes(flow.fields.get("dst", b"")))

    def interface_flow(self, index: int) -> EmulatedFlow | None:
        """The interface of this index as a flow; `None` if there is none."""
        flow = self._interface_flows.get(index)
        found = next((i for i in self.interfaces.values() if i.index == index), None)
        if flow is None and found is not None:
            number = self.provider_number(Provider.INTERFACE)
            fields = {"name": found.name.encode(), "ifindex": index, "type": found.type_number}
            fields["description"] = found.description.encode()
            flow = self._interface_flows[index] = EmulatedFlow(self, number, fields)
            flow.interface = found
            flow.set(found.counts)
        return flow

    def remove_interface(self, name: str) -> None:
        """Take an interface away; the minute-timer, or a poll, says goodbye to its watchers."""
        with self.lock:
            flow = self._interface_flows.pop(self.interface(name).index, None)
            del self.interfaces[name]
            if flow is not None:
                flow.mark_gone()

    # Making them

    def open_flow(
        self, provider_id: int, fields: Mapping[str, Any] | None = None, *, inbound: bool = False
    ) -> EmulatedFlow:
        """Make a flow from raw fields, and announce it to the clients that watch its provider."""
        one_of("provider_id", provider_id, self.release.providers)
        instance("fields", fields if fields is not None else {}, Mapping)
        flag("inbound", inbound)
        structure = self.release.descriptor_name(provider_id)
        assert structure is not None
        values = {name: field_value(structure, name, value) for name, value in (fields or {}).items()}
        with self.lock:
            flow = EmulatedFlow(self, provider_id, values)
            flow.inbound = inbound
            self._flows[provider_id][flow.number] = flow
            if "state" in values:
                flow.set_state(values["state"])
            self.announce(flow)
            return flow

    def open(
        self,
        provider: Provider,
        pid: int = 501,
        name: str = "app",
        *,
        local: Address | None = None,
        remote: Address | None = None,
        userland: bool | None = False,
        interface: str | None = "en0",
        rx: int = 0,
        tx: int = 0,
        inbound: bool = False,
        **fields: Any,
    ) -> EmulatedFlow:
        """A flow with addresses and traffic: TCP, UDP or QUIC.

        Args:
            provider: `Provider.TCP`, ``UDP`` or ``QUIC``.
            pid: Its process.
            name: The executable's name.
            local: Its own address; default: a fresh port, if there is a `remote` one.
            remote: The peer's address. With it, TCP and QUIC flows are established; without it they are just created.
            userland: True: it is in user space, within its process; `None`: whichever of both this release has.
            interface: The interface of its packets; without a `remote` address it had none yet.
            rx: Bytes received so far.
            tx: Bytes sent so far.
            inbound: True for an accepted connection.
            fields: Fields of the descriptor, and counters, by the kernel's names.

        Raises:
            UsageError: This release has no such provider, this machine no such interface, no release such a
                field, or an argument cannot have this value.
        """
        if userland is not None:
            flag("userland", userland)
        number = self.provider_number(provider, userland=userland)
        check_fields(self.release.descriptor_name(number) or "", fields)
        carrier = None if interface is None else self.interface(interface)
        wholes(rx=rx, tx=tx)
        peer = endpoint(remote, "remote")
        mine = endpoint(local, "local") if local is not None or peer is None else self.ephemeral(peer)
        if mine is not None and peer is None:
            peer = Endpoint(bytes(len(mine.packed)), 0)
        owner = self.owner_fields(pid, name)
        if self.release.has_details and self.release.providers[number][1]:
            owner["eupid"] = 0  # ``necp_client.c`` leaves it out
        values = {**_DEFAULTS.get(provider, {}), **owner, "local": mine, "remote": peer, **fields}
        if remote is not None and provider is not Provider.UDP:
            values.setdefault("state", _ESTABLISHED)
        with self.lock:
            counters = {key: values.pop(key) for key in list(values) if key.startswith(COUNTERS)}
            flow = self.open_flow(number, values, inbound=inbound)
            flow.set(counters)
            if remote is not None and carrier is not None:
                flow.use_interface(carrier)
            if rx or tx:
                flow.transfer(rx, tx)
        return flow

    def open_tcp(self, pid: int = 501, name: str = "app", **options: Any) -> EmulatedFlow:
        """A TCP socket, or user-land flow; see `open`."""
        return self.open(Provider.TCP, pid, name, **options)

    def open_udp(self, pid: int = 501, name: str = "app", **options: Any) -> EmulatedFlow:
        """A UDP socket, or user-land flow; see `open`."""
        return self.open(Provider.UDP, pid, name, **options)

    def open_quic(self, pid: int = 501, name: str = "app", **options: Any) -> EmulatedFlow:
        """A user-land QUIC flow (since xnu-6153), to ``198.51.100.7:443`` unless another is given; see `open`."""
        return self.open(Provider.QUIC, pid, name, **{"remote": _SERVER, "userland": None, **options})

    def open_connection(self, pid: int = 501, name: str = "app", **fields: Any) -> EmulatedFlow:
        """A connection attempt of the network framework (since xnu-8019.61): no traffic, no addresses."""
        number = self.provider_number(Provider.CONNECTION)
        attempt = self.random.randbytes(16)
        return self.open_flow(number, {**self.owner_fields(pid, name), "cuuid": attempt, **fields})

    def open_subflow(self, parent: EmulatedFlow, remote: Address, *, rx: int = 0, tx: int = 0) -> EmulatedFlow:
        """One peer of an unconnected UDP socket (since xnu-8019.61); its bytes are the parent's too."""
        instance("parent", parent, EmulatedFlow)
        wholes(rx=rx, tx=tx)
        with self.lock:
            number = self.provider_number(Provider.UDP_SUBFLOW)
            inherited = {key: parent.fields[key] for key in (*OWNER_FIELDS, "local") if key in parent.fields}
            flow = self.open_flow(number, {**inherited, "remote": remote})
            flow.use_interface(parent.interface or "en0")
            for holder in (flow, parent) if rx or tx else ():
                holder.transfer(rx, tx)
        return flow

    def add_route(
        self,
        destination: str,
        *,
        mask: str | None = None,
        gateway: str | None = None,
        interface: str = "en0",
        flags: int = 0x803,
        **fields: Any,
    ) -> EmulatedFlow:
        """A route. `EmulatedFlow.close` removes it, which polls and the minute-timer find out."""
        number = self.provider_number(Provider.ROUTE)
        values: dict[str, Any] = {"dst": endpoint((destination, 0), "destination"), "flags": flags, **fields}
        values["ifindex"] = self.interface(text("interface", interface)).index
        values.setdefault("id", self.random.getrandbits(48))
        for key, address in (("mask", mask), ("gateway", gateway)):
            if address is not None:
                values[key] = endpoint((address, 0), key)
        return self.open_flow(number, values)


_DEFAULTS: dict[Provider, dict[str, Any]] = {
    Provider.TCP: {
        "sndbufsize": 131072,
        "rcvbufsize": 131072,
        "txwindow": 131072,
        "txcwindow": 14480,
        "cc_algo": b"cubic",
        "nstat_min_rtt": 640,
        "nstat_avg_rtt": 800,
        "nstat_var_rtt": 160,
    },
    Provider.QUIC: {"sndbufsize": 131072, "rcvbufsize": 131072, "txcwindow": 14480, "cc_algo": b"cubic"},
    Provider.UDP: {"rcvbufsize": 786896},
}
