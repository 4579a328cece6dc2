"""Plays a conversation recorded above a whole network stack against the emulated kernel.

The truth files hold the state of every socket before each request, not what happened in
between. A socket is therefore opened at its ``start_timestamp``, takes over the state of each
snapshot, and ends when the recording begins to say goodbye to it; the state at that moment
(CLOSED or TIME_WAIT) is the recording's. What no snapshot saw is opened when it is announced.

Aside from timestamps (the recording clock went on by a nanosecond at each look) everything
must be equal: order, boundaries, lengths, flags, contexts, errors, counters, descriptors.
"""

import ipaddress
import itertools
import re

import conversations
from reproduction import Mismatch, describe, difference

from nstat_async import InterfaceKind, Provider
from nstat_async.ntstat._framer import split
from nstat_async.ntstat._messages import decode_message
from nstat_async.testing import EmulatedKernel

_INTERFACES = (
    (1, "lo0", InterfaceKind.LOOPBACK, False),
    (3, "en0", InterfaceKind.WIFI, False),
    (4, "en1", InterfaceKind.WIRED, False),
    (5, "pdp_ip0", InterfaceKind.CELLULAR, True),
    (6, "utun0", InterfaceKind.OTHER, False),
)
_NAMES = {"activity_start": "activity_bitmap.start"}
_COPIED = [
    "pid",
    "upid",
    "epid",
    "eupid",
    "traffic_class",
    "rcvbufsize",
    "rcvbufused",
    "sndbufsize",
    "sndbufused",
    "txunacked",
    "txwindow",
    "txcwindow",
    "start_timestamp",
    "state",
]


def _sockaddr(family, address, port):
    packed = ipaddress.ip_address(address.partition("%")[0]).packed
    if family == "ipv4":
        return (bytes((16, 2)) + port.to_bytes(2, "big") + packed).ljust(28, b"\0")
    return bytes((28, 30)) + port.to_bytes(2, "big") + bytes(4) + packed + bytes(4)


def _unscoped(slot):
    """Take the scope out of the address of a link-local destination."""
    if slot[1] == 30 and slot[8:10] in {b"\xfe\x80", b"\xff\x01", b"\xff\x02"}:
        scope = int.from_bytes(slot[10:12], "big") or int.from_bytes(slot[24:28], "little")
        return slot[:10] + bytes(2) + slot[12:24] + scope.to_bytes(4, "little")
    return slot


def fields_of(state, *, full_names):
    """The truth's state of a socket in the words of the header."""
    fields = {name: state[name] for name in _COPIED if name in state}
    for name in ("uuid", "euuid", "vuuid", "fuuid"):
        if state.get(name):
            fields[name] = bytes.fromhex(state[name].replace("-", ""))
    fields["pname"] = (state.get("proc_name_full") if full_names else None) or state.get("pname", "")
    fields["cc_algo"] = state.get("cc_algo", "")
    for side in ("local", "remote"):
        if side + "_addr" in state:
            fields[side] = _sockaddr(state["family"], state[side + "_addr"], state[side + "_port"])
    if "activity_start" in state:
        fields["activity_bitmap.start"] = state["activity_start"]
        fields["activity_bitmap.bitmap"] = tuple(int(part, 16) for part in state["activity_bitmap"])
    return fields


class StackReplay:
    """One conversation of ``stack/``."""

    def __init__(self, name):
        self.name = name
        self.lines = conversations.load(name)[1]
        self.truth = conversations.truth(name) or {}
        self.kernel = EmulatedKernel(
            conversations.kernel(name), uptime=0, minute_timer=False, privileged="e_errors" not in name
        )
        self.kernel.interfaces.clear()
        for index, interface, kind, expensive in _INTERFACES:
            self.kernel.add_interface(interface, index, kind, expensive=expensive)
        if "7195" in name:
            self.kernel.absent_providers.update({3, 5, 8})
        self.full_names = self.kernel.release.version >= (11215,)
        self.snapshots = {s["before_i"]: s for s in self.truth.get("snapshots", [])}
        self.current, self.names, self.numbers = None, {}, itertools.count()
        self.sockets = {}
        self.flows = {}
        self.clients = {}
        self.owners = {}
        self.starts = {}
        self.items = {}
        self.compared = self.learned = 0
        self.failed = False
        self.poked = None
        self._collect()

    def _collect(self):
        states = [state for s in self.truth.get("snapshots", []) for state in s["sources"].values()]
        states += (self.truth.get("sources") or {}).values()
        self.listening = {state["local_port"] for state in states if state.get("state") == 1}
        self.userland = {state["local_port"]: state for state in states if state.get("userland")}
        self.opened = []
        routes = {state["dst_sockaddr"]: state for state in states if "dst_sockaddr" in state}
        number = self.kernel.provider_number(Provider.ROUTE)
        for state in routes.values():
            parts = {"dst": "dst_sockaddr", "mask": "mask_sockaddr", "gateway": "gateway_sockaddr"}
            fields = {
                key: _unscoped(bytes.fromhex(state[name] or "").ljust(28, b"\0")[:28]) for key, name in parts.items()
            }
            self.kernel.open_flow(number, {**fields, "ifindex": state["ifindex"], "flags": state["flags"]})
        for snapshot in self.truth.get("snapshots", []):
            for state in snapshot["sources"].values():
                if "start_timestamp" in state:
                    self.sockets.setdefault(state["start_timestamp"], state)
        for state in (self.truth.get("sources") or {}).values():
            if "start_timestamp" in state:
                self.sockets.setdefault(state["start_timestamp"], state)
        for line in self.lines:
            for message in self.messages(line) if line["dir"] == "from_kernel" else ():
                values = self.decoded(message)
                if values and "start_timestamp" in values and "local" in values:
                    port = int.from_bytes(values["local"][2:4], "big")
                    self.starts.setdefault((message.provider, port), (values, message))
                    items = {item.type: item.data for item in getattr(message, "items", ())}
                    self.items.setdefault((message.provider, port), items) if items else None
                if values and "uid" in values and message.provider in {2, 4}:
                    self.owners.setdefault(values["pid"], (values["uid"], values["persona_id"]))

    def messages(self, line):
        data = bytes.fromhex(line["hex"])
        return [decode_message(self.kernel.release, data, f) for f in split(data, has_lengths=True)[0]]

    def decoded(self, message):
        if not hasattr(message, "descriptor"):
            return None
        structure = self.kernel.release.descriptor_name(message.provider)
        return self.kernel.release.layout[structure].decode(message.descriptor)

    # The history

    def open_until(self, now):
        for start in sorted(self.sockets):
            if start > now:
                return
            self.open(start, self.sockets.pop(start))

    def open(self, start, state):
        number = self.kernel.provider_number(Provider(state["proto"]), userland=False)
        flow = self.kernel.open_flow(number, {"start_timestamp": start})
        self.flows[start] = flow
        self.apply(flow, state)
        return flow

    def apply(self, flow, state):
        if not flow.open:
            return
        flow.set({"nstat_" + name: value for name, value in state["counts"].items()})
        fields = fields_of(state, full_names=self.full_names)
        if not fields["pname"]:
            del fields["pname"]  # the process is gone; the kernel goes on with the name it had
        if "domain" in self.name:
            flow.items = self.items.get((flow.provider_id, state.get("local_port")), flow.items)
        flow.inbound = (state.get("state", 0) > 1 and state.get("local_port") in self.listening) or flow.inbound
        fields["uid"], fields["persona_id"] = self.owners.get(state["pid"], (0, 0))
        flow.set(fields)
        flow.use_interface(next((i for i in self.kernel.interfaces.values() if i.index == state.get("ifindex")), None))
        flow.set(ifindex=state.get("ifindex", 0))
        flow.peer_is_local = self.is_local(state)

    @staticmethod
    def is_local(state):
        """Known to TCP from the moment it connects."""
        if state.get("state", 0) < 2 or "local_addr" not in state:
            return False
        local, remote = (ipaddress.ip_address(state[side + "_addr"]) for side in ("local", "remote"))
        width = 24 if local.version == 4 else 64
        return remote.is_loopback or remote in ipaddress.ip_network(f"{local}/{width}", strict=False)

    def snapshot(self, line):
        found = self.snapshots.get(line["i"])
        for state in found["sources"].values() if found else ():
            flow = self.flows.get(state.get("start_timestamp"))
            if flow is not None:
                self.apply(flow, state)

    def note(self, line):
        text = line["text"]
        connected = re.match(r"control socket connected", text)
        named = re.search(r"client (\w+)(?: \(unit|:)", text)
        if named:
            if text.startswith("==="):
                self.names[named[1]] = self.current
            self.current = self.names.get(named[1], self.current)
        if connected:
            self.current = next(self.numbers)
            client = self.clients[self.current] = self.kernel.connect()
            size = re.search(r"SO_RCVBUF (\d+) set", text)
            if size:
                client.set_receive_buffer(int(size[1]))
        elif text.startswith("control socket closed"):
            self.clients.pop(self.current).close()
            self.current = max(self.clients, default=None)
        elif "returned errno" in text and not self.failed:
            raise Mismatch(f"line {line['i']}: send was to fail")
        self.userland_note(text, round(line["t"] * 1e9))
        self.crowd_note(text, line)
        event = re.search(r"nstat_pcb_event\(curl TCP socket, (0x[0-9a-f]+|\d+)\)", text)
        if event:
            # Which of the process' sockets it was is told by the report that the first event makes.
            if self.poked is None:
                later = next(li for li in self.lines if li["i"] > line["i"] and li["dir"] == "from_kernel")
                self.poked = self.client(line).sources[self.messages(later)[0].srcref].flow
            self.kernel.raise_event(self.poked, int(event[1], 0))

    def userland_note(self, text, now):
        opened = re.match(r"userland flow opened: provider (\d+), process (\d+), \S+?:(\d+) ->", text)
        if opened and int(opened[3]) in self.userland:
            self.open_userland(self.userland[int(opened[3])], now)
        elif opened:
            self.open_learned(int(opened[1]), *self.starts[int(opened[1]), int(opened[3])])
        closed = re.match(r"userland flow n=(\d+) \(provider (\d+)\) closes", text)
        if closed:
            self.opened[int(closed[1]) - 1].detach()
        event = re.match(r"userland event (0x[0-9a-f]+|\d+) for flow n=(\d+)", text)
        if event:
            self.kernel.raise_event(self.opened[int(event[2]) - 1], int(event[1], 0))

    def open_userland(self, state, now):
        number = state["provider"]
        structure = self.kernel.release.descriptor_name(number)
        given = self.kernel.release.layout[structure].decode(bytes.fromhex(state["descriptor_as_given_by_the_flow"]))
        own = {"pid": state["pid"], "upid": state["upid"], "pname": state["pname"], "start_timestamp": now}
        own["uuid"] = bytes.fromhex(state["uuid"].replace("-", ""))
        flow = self.kernel.open_flow(number, {**given, **own})
        flow.set({"nstat_" + name: value for name, value in state["counts"].items()})
        if state.get("domain_info_hex"):
            flow.items[1] = bytes.fromhex(state["domain_info_hex"])
        self.opened.append(flow)

    def open_learned(self, number, values, message):
        """A flow of which the truth says nothing: as its first report describes it."""
        self.learned += 1
        flow = self.kernel.open_flow(number, {k: v for k, v in values.items() if k != "timestamp"})
        if hasattr(message, "counts"):
            flow.set(self.kernel.release.layout["nstat_counts"].decode(message.counts))
        flow.items = {item.type: item.data for item in getattr(message, "items", ())}
        self.opened.append(flow)

    def crowd_note(self, text, line):
        """Many sockets are made or closed while nobody reads."""
        made = re.match(r"(\d+) UDP sockets created", text)
        if made:
            number = self.kernel.provider_number(Provider.UDP, userland=False)
            for _ in range(int(made[1]) - len(self.flows)):
                self.flows[object()] = self.kernel.open_flow(number, {})
        closing = re.match(r"(\d+|the rest of the) sockets close|all closed without reading", text)
        if closing:
            later = (
                m.srcref
                for l in self.lines
                if l["i"] > line["i"] and l["dir"] == "from_kernel"
                for m in self.messages(l)
                if hasattr(m, "srcref")
            )
            first = next(later)
            sources = sorted(self.clients[self.current].sources.values(), key=lambda s: s.srcref, reverse=first != 1)
            count = int(closing[1]) if (closing[1] or "").isdigit() else len(sources)
            for source in sources[:count]:
                self.end(source, line)

    # The conversation

    def run(self):
        userland = {n for n, (_, inside) in self.kernel.release.providers.items() if inside}
        noted = "".join(line.get("text", "") for line in self.lines)
        for (number, port), (values, message) in self.starts.items():
            if number in userland and f":{port} ->" not in noted:
                self.open_learned(number, values, message)
        for line in self.lines:
            now = round(line["t"] * 1e9)
            self.kernel.advance_to(now)
            self.snapshot(line)
            self.open_until(now)
            getattr(self, line["dir"])(line)
        return self.compared

    def client(self, _line):
        return self.clients[self.current]

    def to_kernel(self, line):
        self.failed = False
        try:
            self.client(line).send(bytes.fromhex(line["hex"]))
        except OSError:
            self.failed = True

    def from_kernel(self, line):
        client = self.client(line)
        recorded = bytes.fromhex(line["hex"])
        if not client.readable:
            self.catch_up(line, client)
        try:
            got = client.receive()
        except BlockingIOError:
            raise Mismatch(f"line {line['i']}: nothing came, recorded {describe(self.kernel, recorded)}") from None
        mine, theirs = self.comparable(got), self.comparable(recorded)
        if mine != theirs:
            raise Mismatch(f"line {line['i']}: " + difference(self.kernel, mine, theirs))
        self.compared += 1

    def catch_up(self, line, client):
        """The recording goes on by itself: somebody opened or closed a socket."""
        (message,) = self.messages(line)
        if message.name == "SRC_ADDED":
            self.learned += 1
            flow = self.kernel.open_flow(message.provider, {"start_timestamp": 0})
            self.flows[object()] = flow
            return
        source = client.sources.get(getattr(message, "srcref", 0))
        if source is None and hasattr(message, "srcref"):
            # It came and went between two looks, and was not announced.
            self.learned += 1
            number = getattr(message, "provider", self.kernel.provider_number(Provider.TCP, userland=False))
            self.flows[object()] = self.kernel.open_flow(number, {"start_timestamp": 0})
            source = client.sources.get(message.srcref)
        if source is None:
            raise Mismatch(f"line {line['i']}: unknown source in {describe(self.kernel, bytes.fromhex(line['hex']))}")
        self.end(source, line)

    def end(self, source, line):
        flow = source.flow
        key = str(source.srcref)
        final = (self.truth.get("sources") or {}).get(key)
        if final is not None and final.get("start_timestamp") == flow.fields.get("start_timestamp"):
            self.apply(flow, final)
        self.take_last_report(flow, source.srcref, line)
        flow.detach()

    def take_last_report(self, flow, srcref, line):
        """What the socket looked like at its end is told by nothing but its last report."""
        for later in self.lines:
            if later["i"] < line["i"] or later["dir"] != "from_kernel":
                continue
            for message in self.messages(later):
                if getattr(message, "srcref", None) != srcref:
                    continue
                values = self.decoded(message)
                if values is not None:
                    told = set() if flow.fields["start_timestamp"] == 0 else {"ifnet_properties", "cc_algo"}
                    flow.set({k: v for k, v in values.items() if k != "timestamp" and k not in told})
                    if flow.fields.get("state") is not None and "state" in values:
                        flow.set(state=values["state"])
                if hasattr(message, "counts"):
                    flow.set(self.kernel.release.layout["nstat_counts"].decode(message.counts))
                if message.name == "SRC_REMOVED":
                    return

    def comparable(self, data):
        buffer = bytearray(data)
        for frame in split(data, has_lengths=True)[0]:
            name = {10003: "nstat_msg_src_description", 10006: "nstat_msg_src_update", 10007: "nstat_msg_src_update"}
            if frame[0] in name:
                message = decode_message(self.kernel.release, data, frame)
                structure = self.kernel.release.descriptor_name(message.provider)
                codec = self.kernel.release.layout[structure]
                if message.provider == 1:
                    at = frame[3] + self.kernel.release.layout[name[frame[0]]].size
                    buffer[at : at + 24] = bytes(24)  # the ids are pointers
                if "pname" in codec and message.provider in {3, 5, 8, 9, 10}:
                    # A name is written over what the flow gave: garbage behind its end.
                    at = frame[3] + self.kernel.release.layout[name[frame[0]]].size + codec.by_name["pname"].offset
                    buffer[at : at + 64] = bytes(buffer[at : at + 64]).split(b"\0")[0].ljust(64, b"\0")
                if "timestamp" in codec:
                    at = frame[3] + self.kernel.release.layout[name[frame[0]]].size + codec.by_name["timestamp"].offset
                    buffer[at : at + 8] = bytes(8)
        return bytes(buffer)


def play_stack(name):
    """Play a conversation of ``stack/``; returns how many datagrams were compared.

    Raises:
        Mismatch: One differs.
    """
    return StackReplay(name).run()
