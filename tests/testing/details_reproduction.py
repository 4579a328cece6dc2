"""Plays a conversation of macOS 26 (counters by medium) against the emulated kernel.

Its notes say what happened to each flow: traffic with the interface that carried it, events, closes,
disconnects. The emulated flows do the same, so that totals, media, activity and property bits are the
emulated kernel's own work. What no note and no truth says (window sizes, UUIDs, the algorithm of
congestion control) is taken from the first report about a flow, and must stay so.
"""

import re

import conversations
from reproduction import Mismatch, describe, difference

from nstat_async._model import Endpoint, InterfaceKind, Provider
from nstat_async.ntstat import decode_message, split
from nstat_async.testing import EmulatedKernel
from nstat_async.testing._lookup import report_traffic

_INTERFACES = (
    ("lo0", 1, InterfaceKind.LOOPBACK, ""),
    ("en0", 4, InterfaceKind.WIFI, "Wi-Fi link"),
    ("en1", 5, InterfaceKind.WIRED, "Ethernet"),
    ("pdp_ip0", 6, InterfaceKind.CELLULAR, ""),
    ("utun0", 7, InterfaceKind.VPN, ""),
    ("awdl0", 8, InterfaceKind.AWDL, ""),
    ("bt0", 9, InterfaceKind.BLUETOOTH, ""),
)
_JUDGED = {"timestamp", "start_timestamp", "ifindex", "state", "local", "remote", "pid", "pname"}
_RTT = ("nstat_min_rtt", "nstat_avg_rtt", "nstat_var_rtt")
_TRAFFIC = ("nstat_rxpackets", "nstat_rxbytes", "nstat_txpackets", "nstat_txbytes")


class DetailsReplay:
    """One conversation of ``control/xnu-12377…``."""

    def __init__(self, name):
        self.name = name
        self.lines = conversations.load(name)[1]
        self.truth = conversations.truth(name)
        self.kernel = EmulatedKernel(conversations.kernel(name), uptime=0, minute_timer=False)
        self.kernel.interfaces.clear()
        for interface, index, kind, description in _INTERFACES:
            self.kernel.add_interface(interface, index, kind, description=description)
        self.kernel.interfaces["en0"].counts.update(zip(_TRAFFIC, (111, 222222, 333, 444444), strict=True))
        self.histories = {s["flow"]: s for c in self.truth["sources"].values() for s in c.values()}
        self.learned = self.learn()
        self.clients, self.flows = {}, {}
        self.compared = 0

    def messages(self, line):
        data = bytes.fromhex(line["hex"])
        return [decode_message(self.kernel.release, data, f) for f in split(data, has_lengths=True)[0]]

    def learn(self):
        """What the first report about each flow says of fields that nothing else says."""
        found, layout = {}, self.kernel.layout
        numbers = {(int(c), int(ref)): s["flow"] for c, x in self.truth["sources"].items() for ref, s in x.items()}
        for line in self.lines:
            for message in self.messages(line) if line["dir"] == "from_kernel" else ():
                flow = numbers.get((line.get("c", 0), getattr(message, "srcref", None)))
                if flow is not None and flow not in found and getattr(message, "descriptor", b""):
                    values = layout[self.kernel.release.descriptor_name(message.provider)].decode(message.descriptor)
                    kept = {k: v for k, v in values.items() if k not in _JUDGED and "activity" not in k}
                    found[flow] = kept
        return found

    def client(self, line):
        number = line.get("c", 0)
        if number not in self.clients:
            self.clients[number] = self.kernel.connect()
            self.clients[number].set_receive_buffer(1 << 20)
        return self.clients[number]

    def run(self):
        for line in self.lines:
            self.kernel.advance_to(line["t"])
            getattr(self, line["dir"])(line)
        for number, client in self.clients.items():
            if not client.closed and client.readable:
                raise Mismatch(f"client {number}: {client.readable} datagrams more than recorded")
        return self.compared

    def to_kernel(self, line):
        failed = None
        try:
            self.client(line).send(bytes.fromhex(line["hex"]))
        except OSError as error:
            failed = error.errno
        if failed != line.get("errno"):
            raise Mismatch(f"line {line['i']}: send failed with {failed}, recorded {line.get('errno')}")

    def from_kernel(self, line):
        recorded = bytes.fromhex(line["hex"])
        try:
            got = self.client(line).receive()
        except BlockingIOError:
            raise Mismatch(f"line {line['i']}: nothing came, recorded {describe(self.kernel, recorded)}") from None
        if self.comparable(got) != self.comparable(recorded):
            raise Mismatch(f"line {line['i']}: " + difference(self.kernel, got, recorded))
        self.compared += 1

    def comparable(self, data):
        """The bytes that must be equal: ids of routes are hashed pointers."""
        buffer = bytearray(data)
        for message, frame in zip(self.messages({"hex": data.hex()}), split(data, has_lengths=True)[0], strict=True):
            if getattr(message, "provider", None) == 1 and hasattr(message, "descriptor"):
                at = frame[4] - len(message.descriptor)
                buffer[at : at + 24] = bytes(24)
        return bytes(buffer)

    # What the recorded machine did

    def note(self, line):
        for pattern, action in self.ACTIONS:
            match = re.search(pattern, line["text"])
            if match:
                action(self, line, *match.groups())
                return
        raise AssertionError(f"line {line['i']}: nobody understands {line['text']!r}")

    def connects(self, line, number, size):
        client = self.client({"c": int(number)})
        if size is not None:
            client.set_receive_buffer(int(size))

    def leaves(self, line, number):
        self.clients[int(number)].close()

    def created(self, line, number):
        history = self.histories.get(int(number))
        if history is None:  # no report about it ever arrived
            self.flows[int(number)] = self.kernel.open_flow(line["provider"], {"state": 4})
            return
        desc = history["history"][0]["desc"]
        fields = {k: v for k, v in self.learned.get(int(number), {}).items() if k != "ifnet_properties"}
        fields |= {"pid": desc["pid"], "pname": desc["pname"]}
        if history["provider"] in {2, 3, 8}:
            fields["state"] = desc["state"]
        if history["provider"] != 9:
            fields |= {side: tuple(desc[side]) for side in ("local", "remote")}
        flow = self.kernel.open_flow(history["provider"], fields, inbound=history["inbound"])
        counts = history["history"][0]["counts"]
        flow.set({name: counts[name] for name in _RTT})
        if history["provider"] not in {2, 4}:
            flow.set({name: counts[name] for name in ("nstat_connectattempts", "nstat_connectsuccesses")})
        flow.use_interface(history["interface"]["name"])
        bits = self.learned.get(int(number), {}).pop("ifnet_properties", None)
        if bits is not None and history["provider"] in {2, 4}:
            flow.peer_is_local = bool(bits & 0x800)  # the routing table's answer
        elif bits is not None:
            flow.set(ifnet_properties=bits)  # the process says it
        self.flows[int(number)] = flow

    def moved(self, _line, number, rx, rx_packets, tx, tx_packets, interface):
        packets = {"rx_packets": int(rx_packets), "tx_packets": int(tx_packets)}
        self.flows[int(number)].transfer(int(rx), int(tx), interface=interface, **packets)

    def moved_in_user_space(self, _line, number, rx, tx, rxp, txp, seen_rx, seen_tx, seen_rxp, seen_txp):
        switch = (int(seen_rxp or rxp), int(seen_rx), int(seen_txp or txp), int(seen_tx))
        self.flows[int(number)].transfer(int(rx), int(tx), rx_packets=int(rxp), tx_packets=int(txp), switch=switch)

    def moved_without_number(self, line, *amounts):
        rx, tx, seen_rx, seen_tx = amounts
        (number,) = [n for n, f in self.flows.items() if f.userland]
        total = self.histories[number]["history"][-1]["media"]["total"]
        packets = (total["ts_rxpackets"], total["ts_txpackets"])
        self.moved_in_user_space(line, number, rx, tx, *packets, seen_rx, seen_tx, None, None)

    def event(self, line, *_):
        self.kernel.raise_event(self.flows[line["flow"]], line["event"])

    def closed(self, _line, number, time_wait):
        self.flows[int(number)].close(first=time_wait is not None)

    def all_closed(self, line):
        for number, flow in self.flows.items():
            self.kernel.advance_to(line["t"] + (number + 1) * 1_000_000)
            flow.detach()

    def died(self, _line, number):
        self.flows[int(number)].mark_gone()

    def disconnected(self, line):
        self.flows[line["flow"]].disconnect()

    def connected_again(self, line, interface, address, port):
        *_, desc = (entry["desc"] for entry in self.histories[line["flow"]]["history"] if "desc" in entry)
        flow = self.flows[line["flow"]]
        flow.connect((address, int(port)), local=tuple(desc["local"]), interface=interface)

    def privileged(self, _line):
        self.kernel.privileged = True

    def idle(self, _line):
        self.kernel.idle_check()

    def nothing(self, _line, *_):
        pass

    def route(self, _line, *counts):
        (route,) = self.truth["extra"]["routes"].values()
        fields = {key: Endpoint.parse(route[key]) for key in ("dst", "mask", "gateway")}
        self.route_flow = self.kernel.open_flow(
            self.kernel.provider_number(Provider.ROUTE), {**fields, "ifindex": route["ifindex"], "flags": 0x803}
        )
        self.route_counts(None, *counts)

    def route_counts(self, _line, *counts):
        self.route_flow.set(dict(zip(_TRAFFIC, map(int, counts), strict=True)))

    def route_down(self, _line):
        self.route_flow.close()

    def threshold(self, _line):
        report_traffic(self.kernel, self.kernel.interface_flow(4))

    def interface_gone(self, _line, index):
        self.kernel.remove_interface(self.kernel.interface_list()[int(index)])

    ACTIONS = (
        (r"client (\d+) connects(?:, receive buffer (\d+))?", connects),
        (r"client (\d+) closed", leaves),
        (r"(?:kernel pcb|user-land flow) (\d+) created", created),
        (
            r"flow (\d+): received (\d+) bytes in (\d+) packets, sent (\d+) in (\d+)(?: over (\w+))?",
            moved,
        ),
        (
            r"flow (\d+): process says (\d+)/(\d+) bytes in (\d+)/(\d+) packets; flow switch saw (\d+)/(\d+) in (\d+)/(\d+)",
            moved_in_user_space,
        ),
        (r"the process says (\d+)/(\d+), the flow switch saw (\d+)/(\d+)", moved_without_number),
        (r"event .*at flow (\d+)", event),
        (r"flow (\d+) closed( \(TIME_WAIT\))?", closed),
        (r"goodbyes while nothing is read", all_closed),
        (r"flow (\d+) is dead", died),
        (r"disconnected", disconnected),
        (r"connected again over (\w+) to ([\d.]+):(\d+)", connected_again),
        (r"the client is privileged", privileged),
        (r"the minute timer ran", idle),
        (r"process \d+ is gone", nothing),
        (r"route \S+ with counts (\d+), (\d+), (\d+), (\d+)", route),
        (r"counts (\d+), (\d+), (\d+), (\d+)", route_counts),
        (r"route down", route_down),
        (r"threshold reached", threshold),
        (r"interface (\d+) goes away", interface_gone),
    )


def play_details(name):
    """Play a conversation of macOS 26; returns how many datagrams were compared.

    Raises:
        Mismatch: One differs.
    """
    return DetailsReplay(name).run()
