"""Attach the source by a BPF token: in a user namespace without any privilege outside, from a bpffs that root delegated.

Prints what `test_ebpf_granted_living.py` compares. Needs root, and Linux 6.9.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import sys

from nstat_async._errors import BackendUnavailableError
from nstat_async._io.ebpf import EbpfSettings, EbpfSource
from nstat_async.ebpf import RingPurpose, decode_records

LIBC = ctypes.CDLL(None, use_errno=True)
FSMOUNT, FSOPEN, FSCONFIG = 432, 430, 431  # the same on all machines
FSCONFIG_SET_STRING, FSCONFIG_CMD_CREATE = 1, 6
CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000


def call(number, *arguments):
    result = LIBC.syscall(number, *arguments)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def inside(link):
    """The process without privileges."""
    if LIBC.unshare(CLONE_NEWUSER | CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare")
    link.send(b"u")
    link.recv(1)  # the uid map is written
    filesystem = call(FSOPEN, b"bpf", 0)
    socket.send_fds(link, [b"f"], [filesystem])
    link.recv(1)  # root has delegated and created it
    mount = call(FSMOUNT, filesystem, 0, 0)
    try:
        with EbpfSource.attach(EbpfSettings(bpffs=f"/proc/self/fd/{mount}")) as source:
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.bind(("127.0.0.1", 0))
            sock.sendto(b"x", sock.getsockname())
            batch: list[bytes] = []
            source.open(RingPurpose()).read_into(batch, 9)
            records = [record for data in batch for record in decode_records(data)[0]]
            print(json.dumps([source.tier.value, source.processes_trusted, len(records) > 0, str(source.refusals)]))
    except BackendUnavailableError as error:
        print(json.dumps(["none", False, False, str(error)]))
    sys.stdout.flush()


def main():
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if not pid:
        try:
            inside(theirs)
        finally:
            os._exit(0)
    ours.recv(1)
    with open(f"/proc/{pid}/uid_map", "w") as file:
        file.write("0 65534 1")
    ours.send(b"x")
    _, (filesystem,), _, _ = socket.recv_fds(ours, 1, 1)
    for key in (b"delegate_cmds", b"delegate_maps", b"delegate_progs", b"delegate_attachs"):
        call(FSCONFIG, filesystem, FSCONFIG_SET_STRING, key, b"any", 0)
    call(FSCONFIG, filesystem, FSCONFIG_CMD_CREATE, None, None, 0)
    ours.send(b"x")
    os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
