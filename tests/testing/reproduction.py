"""Plays a recorded conversation against the emulated kernel.

The emulated kernel gets what the recorded one got: the requests of the clients and, from
the truth files, what the sockets and flows of that machine did. What it answers is compared
with what was recorded, datagram by datagram.

`play_control` reads the conversations of the control alone, whose notes name each step.
"""

import functools
import ipaddress
import re
import struct

import conversations

from nstat_async._model import Endpoint, InterfaceKind, Provider
from nstat_async.ntstat._framer import split
from nstat_async.ntstat._messages import decode_message
from nstat_async.testing import EmulatedKernel
from nstat_async.testing._lookup import report_traffic

_TRAFFIC = ("nstat_rxpackets", "nstat_rxbytes", "nstat_txpackets", "nstat_txbytes")
_INTERFACES = (
    (1, "lo0", InterfaceKind.LOOPBACK, ""),
    (4, "en0", InterfaceKind.WIFI, "Wi-Fi link"),
    (5, "pdp_ip0", InterfaceKind.CELLULAR, ""),
    (7, "en5", InterfaceKind.WIRED, ""),
)
_UUIDS = {"uuid", "euuid", "vuuid", "fuuid", "cuuid", "puuid"}
_STRINGS = {"pname", "cc_algo"}
_FUNCTIONAL = {
    0: InterfaceKind.OTHER,
    1: InterfaceKind.LOOPBACK,
    2: InterfaceKind.WIRED,
    3: InterfaceKind.WIFI,
    4: InterfaceKind.AWDL,
    5: InterfaceKind.CELLULAR,
    7: InterfaceKind.COMPANION,
}


class Mismatch(AssertionError):
    """The emulated kernel answered something else."""


@functools.lru_cache(4096)
def packed_address(text):
    return ipaddress.ip_address(text).packed


def sockaddr(value):
    """The 28 bytes of an address as the truth files spell it."""
    if not value.get("family"):
        return bytes(28)
    packed = packed_address(value["addr"])
    head = bytes((value["len"], value["family"])) + value["port"].to_bytes(2, "big")
    if len(packed) == 4:
        return (head + packed).ljust(28, b"\0")
    return head + struct.pack("<I", value.get("flowinfo", 0)) + packed + struct.pack("<I", value.get("scope_id", 0))


def descriptor(desc):
    """Descriptor fields of a truth file in the form that `EmulatedFlow.set` takes."""
    fields = {}
    for name, value in desc.items():
        if name in {"local", "remote"}:
            fields[name] = sockaddr(value)
        elif name in _UUIDS:
            fields[name] = bytes.fromhex(value)
        elif name in _STRINGS:
            fields[name] = value.encode("utf-8", "surrogateescape")
        elif name == "connstatus.raw32":
            fields["connstatus"] = value
        elif name == "activity_bitmap.bitmap":
            fields[name] = tuple(value)
        elif not name.startswith("connstatus."):
            fields[name] = value
    return fields


def embedded(pcb, prefix):
    """A link-local address of a control block: the scope stands in its second pair of bytes."""
    packed = bytes.fromhex(pcb[prefix + "addr"])
    scope = int.from_bytes(packed[2:4], "big")
    head = bytes((28, 30)) + pcb[prefix + "port"].to_bytes(2, "big") + bytes(4)
    return head + packed[:2] + bytes(2) + packed[4:] + struct.pack("<I", scope)


class ControlReplay:
    """One conversation of ``control/``."""

    def __init__(self, name):
        self.name = name
        self.header, self.lines = conversations.load(name)
        self.truth = conversations.truth(name) or {}
        self.kernel = EmulatedKernel(
            conversations.kernel(name), privileged=True, uptime=0, minute_timer=False, header_garbage=False
        )
        self.clients = {}
        self.flows = {}
        self.routes = []
        self.items_from_replies = False
        self.last = 5_000_000_000
        self.routes_updated = self.routes_down = 0
        self.before_request = lambda: None
        self.shapes_only = not self.truth
        self.kernel.interfaces.clear()
        if conversations.kernel(name).startswith("xnu-7195"):
            # Built from the public source, which lacks the user-land providers of this release.
            self.kernel.absent_providers.update({3, 5, 8})
        for index, name_, kind, description in _INTERFACES:
            self.kernel.add_interface(name_, index, kind, description=description)
        self.kernel.interfaces["en0"].counts.update(zip(_TRAFFIC, (111, 222222, 333, 444444), strict=True))
        self.noted = {line["flow"] for line in self.lines if re.search("opened|created", line.get("text", ""))}
        self.histories = {}
        self.failed = {}
        self.at_leisure = []
        self._collect_histories()
        self.unnoted = {
            number: history["history"][0]["t"]
            for number, history in self.histories.items()
            if history["history"] and number not in self.noted
        }
        self.compared = 0

    def _collect_histories(self):
        for client in (self.truth.get("sources") or {}).values():
            for source in (client or {}).values():
                if source.get("flow") is not None:
                    self.histories.setdefault(source["flow"], source)

    def client(self, number):
        if number not in self.clients:
            self.clients[number] = self.kernel.connect()
        return self.clients[number]

    def run(self):
        for line in self.lines:
            if self.name.endswith("buffer_full_addall"):
                self.fill_gap(line)
            self.kernel.advance_to(line["t"])
            self.open_unnoted(line)
            getattr(self, line["dir"])(line)
        for number, client in self.clients.items():
            read = [line for line in self.lines if line.get("c") == number][-1]["dir"] == "from_kernel"
            if not client.closed and client.readable and read:
                raise Mismatch(f"client {number}: {client.readable} datagrams more than recorded")
        return self.compared

    # What the recorded machine did

    def note(self, line):
        text = line["text"]
        for pattern, action in self.ACTIONS:
            match = re.search(pattern, text)
            if match:
                action(self, line, *match.groups())
                return

    def opened(self, line, *_):
        number = line["flow"]
        history = self.histories.get(number)
        fields = {"start_timestamp": line["t"]}
        flow = self.kernel.open_flow(self.provider(line), fields) if history is None else self.open_known(line, history)
        self.flows[number] = flow
        if history is None:
            flow.set(nstat_rxbytes=1, nstat_txbytes=1)

    def fill_gap(self, line):
        """Hundreds of flows are opened, one a millisecond, without a note; most are never told of."""
        gap = (line["t"] - self.last) // 1_000_000 - 1
        self.last = line["t"]
        if gap < 100 or line["dir"] != "to_kernel":
            return
        codec = self.kernel.release.layout["nstat_msg_add_all_srcs"]
        provider = codec.read("provider", bytes.fromhex(line["hex"]))
        known = {history["history"][0]["t"] for history in self.histories.values() if history["history"]}
        for moment in range(line["t"] - gap * 1_000_000, line["t"], 1_000_000):
            self.kernel.advance_to(moment)
            if moment in known:
                self.open_unnoted({"t": moment})
            else:
                self.kernel.open_flow(provider, {}).set(nstat_rxbytes=1)

    def open_unnoted(self, line):
        for number in [number for number, first in self.unnoted.items() if first <= line["t"]]:
            first = self.unnoted.pop(number)
            if number not in self.flows:
                self.opened({"flow": number, "provider": self.histories[number]["provider"], "t": first})

    def open_known(self, line, history):
        first = history["history"][0]
        fields = descriptor(first.get("desc", {}))
        fields["start_timestamp"] = line["t"]
        with self.kernel.lock:
            flow = self.kernel.open_flow(self.provider(line), fields)
            self.apply(flow, history, line["t"], first=True)
            if self.name.endswith("filters_interface") and flow.userland:
                flow.properties_at_open = (0x8, 0x4, 0x10, 0x2)[line["flow"]]
        return flow

    def provider(self, line):
        """Notes number kernel sockets as new kernels do."""
        if self.kernel.release.version < (3789,) and line["provider"] == 4:
            return self.kernel.provider_number(Provider.UDP)
        return line["provider"]

    def apply(self, flow, history, until, *, first=False):
        done = history.setdefault("done", 0)
        entries = history["history"]
        while done < len(entries) and entries[done]["t"] <= until:
            entry = entries[done]
            done += 1
            flow.set(entry["counts"])
            if "desc" in entry:
                fields = descriptor(entry["desc"])
                fields.pop("start_timestamp", None)
                flow.set(fields)
            if history.get("kernel_pcb"):
                self.apply_pcb(flow, entry.get("pcb", {"connstatus": 1}))
            if "ext" in entry:
                flow.items = {int(kind): bytes.fromhex(data) for kind, data in entry["ext"].items()}
            if "iface" in entry:
                self.use_interface(flow, entry["iface"])
        history["done"] = done
        if first and "iface" in history:
            self.use_interface(flow, history["iface"])

    def apply_pcb(self, flow, pcb):
        flow.set(connstatus=pcb.get("connstatus", 0))
        flow.inbound = bool(pcb.get("inbound"))
        if "inbound" in pcb or "v6" in pcb:
            flow.peer_is_local = bool(pcb.get("tf_local"))
        flow.cell_fallback = bool(pcb.get("cellfallback"))
        for name, prefix in (("local", "l"), ("remote", "f")):
            if not flow.fields.get(name) and prefix + "addr" in pcb:
                flow.set({name: embedded(pcb, prefix)})

    def use_interface(self, flow, iface):
        if not iface or not iface.get("ifindex"):
            flow.use_interface(None)
            return
        kind = InterfaceKind.VPN if iface.get("vpn") else _FUNCTIONAL.get(iface["functional_type"], InterfaceKind.OTHER)
        made = self.kernel.add_interface(
            iface["name"],
            iface["ifindex"],
            kind,
            expensive=bool(iface["expensive"]),
            constrained=bool(iface["constrained"]),
            description=iface.get("desc", ""),
        )
        flow.use_interface(made)

    def changed(self, line, *_):
        number = line["flow"]
        if number in self.histories and number in self.flows:
            self.apply(self.flows[number], self.histories[number], line["t"])

    def closed(self, line, *_):
        self.changed(line)
        self.flows[line["flow"]].detach()

    def died(self, line, *_):
        self.flows[line["flow"]].mark_gone()

    def event(self, line, number):
        flow = self.flows[line["flow"]]
        if not flow.is_kernel_socket:
            if int(number, 16) == 1:
                self.kernel.userland_time_wait(flow)
        else:
            self.kernel.raise_event(flow, int(number, 16))

    def override(self, _line, state):
        on = state == "on"
        for flow in self.kernel.flows():
            if not flow.is_kernel_socket:
                properties = flow.fields["ifnet_properties"]
                if on:
                    flow.set(ifnet_properties=properties | 0x100, fallback_mode=3)
                else:
                    flow.set(ifnet_properties=properties & ~0x100, fallback_mode=0)
                self.kernel.raise_event(flow, 0x400 if on else 0x800)

    def client_closed(self, line, *_):
        self.client(line["c"]).close()

    def buffer_set(self, line, size):
        self.client(line["c"]).set_receive_buffer(int(size))

    def refused(self, line, number):
        if self.failed.pop(line["c"], None) is None:
            raise Mismatch(f"line {line['i']}: send was to fail with {number}")

    def idle(self, _line):
        self.kernel.idle_check()

    def exhausted(self, _line):
        # The recording machine had memory for 0, 1, 2, … records in turn, and plenty in between.
        budgets = [0, 0, 1, None, 2, None, 3, None, 4, None]
        self.before_request = lambda: setattr(self.kernel.faults, "mbufs", budgets.pop(0) if budgets else None)

    def route_added(self, line, *_):
        fields = {"dst": line["dst"], "mask": line["mask"], "gateway": line["gateway"]}
        values = {key: Endpoint.parse(value) for key, value in fields.items() if value}
        number = self.kernel.provider_number(Provider.ROUTE)
        self.routes.append(
            self.kernel.open_flow(number, {**values, "ifindex": line["ifindex"], "flags": line["flags"]})
        )

    def route_update(self, line):
        flow = self.routes[self.routes_updated]
        self.routes_updated += 1
        names = ("connectattempts", "connectsuccesses", "rxpackets", "rxbytes", "rxduplicatebytes", "rxoutoforderbytes")
        names += ("txpackets", "txbytes", "txretransmit", "avg_rtt", "var_rtt")
        values = dict(zip(("nstat_" + name for name in names), line["args"], strict=True))
        if self.kernel.release.version < (4570,):
            # Older kernels count calls, and bytes of kinds that the recording machine did not give.
            for name in ("rxduplicatebytes", "rxoutoforderbytes", "txretransmit"):
                values["nstat_" + name] = 0
            values["nstat_connectattempts"] = values["nstat_connectsuccesses"] = 1
        flow.set(values, nstat_min_rtt=values["nstat_avg_rtt"])

    def route_down(self, _line):
        self.routes[-1 - self.routes_down].close()
        self.routes_down += 1

    def threshold(self, _line):
        flow = self.kernel.interface_flow(4)
        flow.set(dict(zip(_TRAFFIC, (1111, 22222222, 3333, 44444444), strict=True)))
        report_traffic(self.kernel, flow)

    def system_information(self, line):
        self.kernel.send_system_information(
            self.next_reply(line)[self.kernel.layout["nstat_msg_sysinfo_counts"].size :]
        )

    def next_reply(self, line):
        return next(bytes.fromhex(l["hex"]) for l in self.lines if l["dir"] == "from_kernel" and l["i"] > line["i"])

    def defunct(self, _line):
        self.at_leisure.append(self.end_all)

    def end_all(self):
        for flow in sorted(self.kernel.flows(), key=lambda flow: -flow.number):
            flow.detach()

    def privileges(self, _line, check):
        self.kernel.privileged = False
        self.kernel.privilege_check = check == "1"

    def learn_items(self, line, *_):
        """The items of the kernel sockets are told by nothing but the first report that has them."""
        self.items_from_replies = True

    def second_call_fails(self, _line):
        for flow in self.flows.values():
            if flow.provider is Provider.UDP:
                flow.broken_items.add(2)

    ACTIONS = (
        (r"(?:flow \d+ opened|kernel pcb \d+ created)", opened),
        (r"(?:flow|pcb) \d+ changed", changed),
        (r"(?:flow \d+ closed|pcb \d+ detached)", closed),
        (r"marked DEAD", died),
        (r"(?:flow|pcb) \d+ event (0x[0-9a-f]+)", event),
        (r"mark_rnf_override\((\w+)\)", override),
        (r"client closes its socket", client_closed),
        (r"SO_RCVBUF (\d+) after connect", buffer_set),
        (r"send\(\) failed errno (\d+)", refused),
        (r"idle check runs", idle),
        (r"mbuf exhaustion", exhausted),
        (r"process defunct", defunct),
        (r"route added", route_added),
        (r"nstat_route_update", route_update),
        (r"route down", route_down),
        (r"threshold reached", threshold),
        (r"nstat_sysinfo_send_data", system_information),
        (r"nstat_privcheck=(\d)", privileges),
        (r"fails at the second call", second_call_fails),
        (r"kernel tcp/udp: domain and bluetooth", learn_items),
    )

    # The conversation

    def to_kernel(self, line):
        for flow, history in ((f, self.histories.get(n)) for n, f in self.flows.items()):
            if history is not None:
                self.apply(flow, history, line["t"])
        self.before_request()
        try:
            if self.items_from_replies:
                self.take_items(line)
            self.client(line["c"]).send(bytes.fromhex(line["hex"]))
        except OSError as error:
            self.failed[line["c"]] = error

    def from_kernel(self, line):
        recorded = bytes.fromhex(line["hex"])
        client = self.client(line["c"])
        if not client.readable and self.at_leisure:
            self.at_leisure.pop(0)()
        if not client.readable and self.shapes_only:
            self.open_unknown(recorded)
        try:
            got = client.receive()
        except BlockingIOError:
            raise Mismatch(f"line {line['i']}: nothing came, recorded {describe(self.kernel, recorded)}") from None
        expected, mine = self.comparable(recorded), self.comparable(got)
        if mine != expected:
            raise Mismatch(f"line {line['i']}: " + difference(self.kernel, mine, expected))
        self.compared += 1

    def take_items(self, line):
        for later in self.lines:
            if later["i"] <= line["i"] or later["dir"] != "from_kernel":
                continue
            data = bytes.fromhex(later["hex"])
            for frame in split(data, has_lengths=True)[0]:
                message = decode_message(self.kernel.release, data, frame)
                source = self.client(0).sources.get(getattr(message, "srcref", 0))
                if getattr(message, "items", ()) and source is not None and not source.flow.items:
                    source.flow.items = {item.type: item.data for item in message.items}

    def comparable(self, data):
        """The bytes that must be equal: garbage aside, and only the shape where no truth was kept."""
        data = self.garbage_aside(data)
        if not self.shapes_only:
            return data
        frames, _ = split(data, has_lengths=self.kernel.layout.has_lengths)
        return b"".join(data[begin : min(end, begin + 24)] for _, _, _, begin, end in frames)

    def open_unknown(self, recorded):
        if int.from_bytes(recorded[8:12], "little") == 10001:
            codec = self.kernel.release.layout["nstat_msg_src_added"]
            self.kernel.open_flow(codec.read("provider", recorded), {}).set(nstat_rxbytes=1)

    def garbage_aside(self, data):
        """Zero what depends on the recording machine: header stack (up to xnu-2422), route ids (pointers)."""
        if self.kernel.release.version < (2782,):
            data = data[:12] + bytes(4) + data[16:]
        if not self.routes:
            return data
        buffer = bytearray(data)
        for kind, _, _, begin, _ in split(data, has_lengths=self.kernel.layout.has_lengths)[0]:
            name = {10003: "nstat_msg_src_description", 10006: "nstat_msg_src_update"}.get(kind)
            if name is not None:
                at = begin + self.kernel.release.layout[name].size
                buffer[at : at + 24] = bytes(24)
        return bytes(buffer)


def describe(kernel, data):
    """The messages of a datagram in a line."""
    frames, defect = split(data, has_lengths=kernel.release.layout.has_lengths)
    parts = []
    for frame in frames:
        try:
            message = decode_message(kernel.release, data, frame)
        except Exception as error:
            parts.append(repr(error))
            continue
        parts.append(
            f"{message.name}({frame[4] - frame[3]}) ctx={message.context} fl={message.flags} "
            f"ref={getattr(message, 'srcref', None)} err={getattr(message, 'error', None)}"
        )
    return f"{len(data)} bytes: {'; '.join(parts[:3])}{' …' if len(parts) > 3 else ''} {defect or ''}"


def difference(kernel, got, expected):
    """Where two datagrams differ, field by field as far as they are the same messages."""
    text = f"got {describe(kernel, got)}\n  recorded {describe(kernel, expected)}"
    has_lengths = kernel.release.layout.has_lengths
    for a, b in zip(split(got, has_lengths=has_lengths)[0], split(expected, has_lengths=has_lengths)[0], strict=False):
        one, two = got[a[3] : a[4]], expected[b[3] : b[4]]
        if one == two:
            continue
        mine, theirs = decode_message(kernel.release, got, a), decode_message(kernel.release, expected, b)
        if type(mine) is not type(theirs):
            break
        for name in ("counts", "descriptor"):
            if getattr(mine, name, None) == getattr(theirs, name, None):
                continue
            structure = "nstat_counts" if name == "counts" else kernel.release.descriptor_name(theirs.provider)
            codec = kernel.release.layout[structure]
            x, y = codec.decode(getattr(mine, name)), codec.decode(getattr(theirs, name))
            text += "".join(f"\n    {k}: {x[k]!r} != {y[k]!r}" for k in y if x.get(k) != y[k])
        at = next((i for i, (p, q) in enumerate(zip(one, two, strict=False)) if p != q), min(len(one), len(two)))
        text += f"\n    first difference at byte {at} of message {a[3]}"
        break
    return text


def play_control(name):
    """Play a conversation of ``control/``; returns how many datagrams were compared.

    Raises:
        Mismatch: One differs.
    """
    return ControlReplay(name).run()


def play_starved(name):
    """Play ``older_client_starved``: which source got which number; returns how many reports were compared.

    Raises:
        Mismatch: A message has another header, or another reference.
    """
    kernel = EmulatedKernel(conversations.kernel(name), minute_timer=False)
    clients, compared = {}, 0
    for line in conversations.load(name)[1]:
        if line["dir"] == "note":
            for _ in range(300):
                kernel.open_tcp(remote=("198.51.100.7", 443))
            continue
        if line["c"] not in clients:
            clients[line["c"]] = kernel.connect()
        client, data = clients[line["c"]], bytes.fromhex(line["hex"])
        if line["dir"] == "to_kernel":
            if line["c"] == 0:
                client.set_receive_buffer(1 << 20)
            client.send(data)
            continue
        got = client.receive()
        shapes = [[d[f[3] : f[3] + 24] for f in split(d, has_lengths=True)[0]] for d in (got, data)]
        if shapes[0] != shapes[1]:
            raise Mismatch(f"line {line['i']}: got {describe(kernel, got)}\n  recorded {describe(kernel, data)}")
        compared += len(shapes[0])
    return compared
