"""Where a flow goes, on the living kernel: local or not, over which interface, and who began it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from nursery import NETWORK


def can_unshare() -> bool:
    try:
        done = subprocess.run(["unshare", "-n", "ip", "link"], capture_output=True, check=False)
    except FileNotFoundError:
        return False
    return done.returncode == 0


living = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0 or not can_unshare(), reason="needs root and network namespaces"
)
BEGIN = """
import asyncio, json, os, socket, subprocess, sys
from nstat_async import Monitor, snapshot
from nstat_async.backends import SockDiag
def sh(*commands):
    for command in commands:
        done = subprocess.run(command, shell=True, capture_output=True, text=True)
        if done.returncode:
            print(json.dumps({"skip": done.stderr})); sys.exit()
def look():
    return [flow for flow, _ in asyncio.run(snapshot(providers=("tcp", "udp")))]
def tell(flows):
    print(json.dumps([[str(f.local), str(f.remote), f.interface and f.interface.name,
        f.interface and f.interface.kind and f.interface.kind.value, f.is_loopback,
        f.direction and f.direction.value] for f in flows]))
"""


@pytest.fixture
def inside(nursery):
    """What a program in a network namespace of its own tells."""

    def run(script: str):
        status, out, err = nursery.run(BEGIN + script, NETWORK)
        assert status == 0, err
        told = json.loads(out)
        if isinstance(told, dict) and "skip" in told:
            pytest.skip(f"this kernel cannot: {told['skip']}")
        return told

    return run


SERVICE_ADDRESS = """
sh("ip link add va0 type veth peer name vb0", "ip addr add 10.77.0.1/24 dev va0", "ip addr add 198.18.0.53/32 dev lo")
other = subprocess.Popen(["unshare", "-n", "sh", "-c", "echo; read x"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
other.stdout.readline()
enter = f"nsenter -n -t {other.pid} "
sh(f"ip link set vb0 netns {other.pid}", "ip link set va0 up", enter + "ip addr add 10.77.0.2/24 dev vb0",
   enter + "ip link set vb0 up", enter + "ip route add 198.18.0.53 via 10.77.0.1")
listener = socket.create_server(("198.18.0.53", 7881))
client = subprocess.Popen([*enter.split(), sys.executable, "-c",
    "import socket, sys; c = socket.create_connection(('198.18.0.53', 7881)); c.send(b'x'); sys.stdin.read()"],
    stdin=subprocess.PIPE)
server, _ = listener.accept(); server.recv(1)
found = look()
client.stdin.close(); client.wait(); other.stdin.close(); other.wait()
tell(found)
"""
OWN_ADDRESS = """
sh("ip link add va0 type veth peer name vb0", "ip link set va0 up", "ip link set vb0 up", "ip addr add 10.77.0.1/24 dev va0",
   "ip addr add 10.78.0.1/24 dev vb0")
listener = socket.create_server(("10.77.0.1", 0))
pairs = [(socket.create_connection(listener.getsockname(), source_address=(own, 0)), listener.accept()) for own in ("10.77.0.1", "10.78.0.1")]
wide = socket.socket(socket.AF_INET6); wide.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0); wide.bind(("::ffff:10.77.0.1", 0)); wide.listen()
mapped = socket.create_connection(("10.77.0.1", wide.getsockname()[1])), wide.accept()
udp = [socket.socket(type=socket.SOCK_DGRAM) for _ in range(2)]
for each in udp: each.connect(("10.78.0.1", 9))
tell(look())
"""
AWAY = """
sh("ip link add va0 type veth peer name vb0", "ip link set va0 up", "ip link set vb0 up", "ip addr add 10.77.0.1/24 dev va0")
udp = [socket.socket(type=socket.SOCK_DGRAM) for _ in range(3)]
for each, peer in zip(udp, ("10.77.0.9", "10.77.0.255", "224.0.0.251")):
    each.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1); each.setsockopt(0, 32, socket.inet_aton("10.77.0.1")); each.connect((peer, 9))
tell(look())
"""
MOVED = """
sh("ip link add va0 type veth peer name vb0", "ip link set va0 up", "ip link set vb0 up", "ip addr add 10.77.0.1/24 dev va0")
udp = socket.socket(type=socket.SOCK_DGRAM); udp.bind(("10.77.0.1", 7))
async def main():
    told = []
    async with Monitor(backend=SockDiag(), interval=None, ebpf="off", pulse=None, providers="udp") as monitor:
        events = monitor.subscribe()
        for commands in ([], ["ip link set va0 down", "ip link set va0 name lan7", "ip link set lan7 up"],
                ["ip addr add 10.77.0.1/32 dev vb0", "ip addr del 10.77.0.1/32 dev vb0"],
                ["ip addr add 10.77.0.1/32 dev vb0", "ip addr del 10.77.0.1/24 dev lan7"]):
            sh(*commands)
            await monitor.poll_now()
            told.append([[type(e).__name__, e.flow.id, e.flow.interface.name] for e in events.receive_nowait() if hasattr(e, "flow")])
    print(json.dumps(told))
asyncio.run(main())
"""
SCOPES = """
sh("ip link add va0 type veth peer name vb0", "ip link set va0 addrgenmode none", "ip link set va0 up", "ip link set vb0 up",
   "ip addr add fe80::7/64 dev va0 nodad")
index = socket.if_nametoindex("va0")
udp = [socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) for _ in range(3)]
udp[0].connect(("ff02::fb", 5353, 0, index)); udp[1].connect(("fe80::9", 9, 0, index)); udp[2].bind(("ff02::1:3", 5355, 0, index))
print(json.dumps([index, [[f.local.scope_id, f.remote and str(f.remote), f.interface.name] for f in look()]]))
"""
RESTORED = """
def restored(local, remote, sequence, acknowledged):
    made = socket.socket(); made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); made.setsockopt(6, 19, 1)
    for queue, number in ((2, sequence), (1, acknowledged)):
        made.setsockopt(6, 20, queue); made.setsockopt(6, 21, number)
    made.bind(local); made.connect(remote); return made
try:
    a, b = ("127.0.0.1", 7912), ("127.0.0.1", 7913)
    one, two = restored(a, b, 1000, 5000), restored(b, a, 5000, 1000)
except OSError as error:
    print(json.dumps({"skip": str(error)})); sys.exit()
for each in (one, two): each.setsockopt(6, 19, 0)
flows = look(); one.send(b"m" * 40); two.recv(99); tell([*flows, *look()])
"""


@pytest.mark.linux
@living
def test_what_comes_to_a_service_address_on_the_loopback_interface_is_not_local(inside):
    told = {remote: (name, local) for _, remote, name, _, local, _ in inside(SERVICE_ADDRESS)}
    assert told.pop("None") == (None, False)
    assert list(told.values()) == [("va0", False)]


@pytest.mark.linux
@living
def test_a_connection_to_an_own_address_is_local_over_whichever_interface_has_it(inside):
    """TCP, also of a socket that is of IPv6, and UDP."""
    told = inside(OWN_ADDRESS)
    assert len(told) == 10
    for _, remote, name, kind, local, _ in told:
        assert (name, kind, local) == (("va0", "bridge", False) if remote == "None" else ("lo", "loopback", True))


@pytest.mark.linux
@living
def test_a_neighbour_a_broadcast_and_a_group_are_not_local(inside):
    told = {remote: (name, local) for _, remote, name, _, local, _ in inside(AWAY)}
    assert told == dict.fromkeys(("10.77.0.9:9", "10.77.0.255:9", "224.0.0.251:9"), ("va0", False))


@pytest.mark.linux
@living
def test_a_name_that_changed_and_an_address_that_moved_are_updates(inside):
    """Another holder of the address that comes and goes is none."""
    first, renamed, visited, moved = inside(MOVED)
    ((kind, flow, name),) = first
    assert (kind, name) == ("FlowAdded", "va0")
    assert (renamed, visited, moved) == ([["FlowUpdated", flow, "lan7"]], [], [["FlowUpdated", flow, "vb0"]])


@pytest.mark.linux
@living
def test_ends_of_a_link_and_its_groups_have_its_scope(inside):
    index, told = inside(SCOPES)
    assert sorted(told, key=str) == sorted(
        ([index, f"[ff02::fb%{index}]:5353", "va0"], [index, f"[fe80::9%{index}]:9", "va0"], [index, None, "va0"]),
        key=str,
    )


@pytest.mark.linux
@living
def test_both_ends_of_a_restored_connection_have_no_direction(inside):
    told = inside(RESTORED)
    assert [direction for *_, direction in told] == [None] * 4


DEVICES = {
    "ip link add x0 type bridge": "bridge",
    "ip link add x0 type dummy": "other",
    "ip link add x0 type veth peer name y0": "bridge",
    "ip link add x0 type ifb": "other",
    "ip link add x0 type bond": "wired",
    "ip tuntap add x0 mode tap": "bridge",
    "ip tuntap add x0 mode tun": "vpn",
    "ip link add x0 type vxlan id 7 dstport 4789": "vpn",
    "ip link add y0 type veth peer name z0 && ip link add x0 link y0 type macvlan": "bridge",
    "ip link add y0 type veth peer name z0 && ip link add x0 link y0 type macvtap": "bridge",
    "ip link add y0 type veth peer name z0 && ip link add x0 link y0 type ipvlan": "bridge",
    "ip link add y0 type veth peer name z0 && ip link add x0 link y0 type vlan id 5": "wired",
    "ip link add x0 type wireguard": "vpn",
    "ip link add x0 type vrf table 10": "other",
    "ip link add x0 type geneve id 7 remote 192.0.2.2": "vpn",
    "ip link add x0 type sit local 192.0.2.1 remote 192.0.2.2": "vpn",
    "ip link add x0 type gre local 192.0.2.1 remote 192.0.2.2": "vpn",
    "ip link add x0 type gretap local 192.0.2.1 remote 192.0.2.2": "vpn",
    "ip link add x0 type ip6tnl local 2001:db8::1 remote 2001:db8::2": "vpn",
    "ip link add x0 type vti local 192.0.2.1 remote 192.0.2.2 key 1": "vpn",
    "ip link add x0 type xfrm dev lo if_id 5": "vpn",
    "ip link add x0 type ipip local 192.0.2.1 remote 192.0.2.2": "vpn",
}
EACH_DEVICE = f"""
found = {{}}
for make in {list(DEVICES)!r}:
    if subprocess.run(make, shell=True, capture_output=True).returncode:
        continue  # this kernel cannot
    sh("ip addr add 10.55.0.1/24 dev x0", "ip link set x0 up")
    udp = socket.socket(type=socket.SOCK_DGRAM); udp.bind(("10.55.0.1", 7))
    ((flow,),) = [[flow for flow in look() if flow.local.port == 7]]
    found[make] = [flow.interface.name, flow.interface.kind.value, flow.is_loopback, flow.direction]
    udp.close()
    sh("ip link del x0"); subprocess.run("ip link del y0", shell=True, capture_output=True)
print(json.dumps(list(found.items())))
"""


@pytest.mark.linux
@living
def test_what_the_devices_of_this_kernel_look_like(inside):
    found = dict(inside(EACH_DEVICE))
    assert len(found) >= 3, "of devices that every kernel has"
    assert found == {make: ["x0", DEVICES[make], False, None] for make in found}


MANY_CHANGES = """
sh("ip link add va0 type veth peer name vb0", "ip link set va0 up")
async def main():
    async with Monitor(backend=SockDiag(), interval=None, ebpf="off") as monitor:
        await monitor.poll_now()
        lines = [f"addr {'add' if n % 3 else 'replace'} 10.{n >> 8 & 255}.{n & 255}.1/32 dev va0" for n in range(1500)]
        lines += [f"addr del 10.{n >> 8 & 255}.{n & 255}.1/32 dev va0" for n in range(1500) if n != 77]
        subprocess.run(["ip", "-batch", "-"], input="\\n".join(lines), text=True, check=True)  # the loop is held
        udp = socket.socket(type=socket.SOCK_DGRAM); udp.bind(("10.0.77.1", 7))
        await monitor.poll_now()
        tell([flow for flow, _ in monitor.flows if flow.local.port == 7])
asyncio.run(main())
"""


@pytest.mark.linux
@living
def test_three_thousand_changes_while_the_loop_is_held_leave_the_table_true(inside):
    told = inside(MANY_CHANGES)
    assert told == [["10.0.77.1:7", "None", "va0", "bridge", False, None]]
