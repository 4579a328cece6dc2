"""Calls ``bpf(2)`` by ctypes: maps, programs, links.

Attributes have the layout of ``union bpf_attr`` of ``include/uapi/linux/bpf.h``. A kernel takes a shorter attribute
than it knows (the rest counts as zero), and refuses a longer one only if the part that it does not know is not zero. So
each attribute here ends where an old kernel's does, unless a token is given.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import platform
import struct
import sys
from typing import Any

from ..ebpf import MapSpec

_NUMBERS = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "loongarch64": 280, "ppc64le": 361}
"""The system call's number by machine; all of these have 64-bit pointers and are little-endian."""
_MAP_CREATE, _LOOKUP, _UPDATE, _DELETE = 0, 1, 2, 3
_PROG_LOAD, _OBJ_GET_INFO, _RAW_TRACEPOINT_OPEN, _LOOKUP_AND_DELETE = 5, 15, 17, 21
_LOOKUP_BATCH, _LINK_CREATE, _ITER_CREATE, _TOKEN_CREATE = 24, 28, 33, 36
_TOKEN_FLAG = 1 << 16
"""``BPF_F_TOKEN_FD``."""
_ENOTSUPP = 524
_NOEXIST = 1
_LOG_SIZE = 1 << 18
_LOAD_ATTEMPTS = 5
"""How often a program is loaded: the verifier gives up with EAGAIN when a signal is pending."""
_INFO = struct.Struct("=208xQ16x")
"""``struct bpf_prog_info`` up to ``verified_insns`` and its padding; the number is ``recursion_misses``."""
NO_TOKEN = -1


class VerifierError(OSError):
    """The kernel refused a program; `log` is the verifier's log."""

    log = ""


@functools.cache
def _system_call() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    call = libc.syscall
    call.restype = ctypes.c_long
    call.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_uint)
    return call


@functools.cache
def _number() -> int:
    number = _NUMBERS.get(platform.machine())
    if not sys.platform.startswith("linux") or number is None or sys.byteorder != "little" or sys.maxsize < 1 << 32:
        raise OSError(errno.ENOSYS, f"bpf(2) is not known on {sys.platform} {platform.machine()}")
    return number


def _bpf(command: int, attribute: bytes | bytearray) -> tuple[int, bytes]:
    """Make one call; returns its result, and the attribute as the kernel changed it."""
    buffer = ctypes.create_string_buffer(bytes(attribute), len(attribute))
    result = _system_call()(_number(), command, buffer, len(attribute))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), f"bpf({command})")
    return int(result), buffer.raw


def create_map(spec: MapSpec, token: int = NO_TOKEN) -> int:
    """Make a map and return its descriptor.

    Raises:
        OSError: The kernel refused.
    """
    flags = spec.map_flags | (0 if token < 0 else _TOKEN_FLAG)
    name = spec.name.encode()[:15]
    attribute = struct.pack("=7I16s", spec.type, spec.key, spec.value, spec.max_entries, flags, 0, 0, name)
    if token >= 0:
        attribute += struct.pack("=32xi", token)
    return _bpf(_MAP_CREATE, attribute)[0]


def load_program(
    name: str,
    code: bytes,
    license_name: str,
    types: tuple[int, int],
    btf_id: int = 0,
    token: int = NO_TOKEN,
) -> int:
    """Load a program and return its descriptor.

    Args:
        name: For ``bpftool`` and the kernel's own messages.
        code: Its instructions.
        license_name: Its licence.
        types: ``enum bpf_prog_type`` and ``enum bpf_attach_type``.
        btf_id: BTF id of the function that it is attached to, if its type needs one.
        token: A BPF token; `NO_TOKEN`: use the privileges of the process.

    Raises:
        VerifierError: The kernel refused; with the verifier's log, if there is one.
    """
    instructions = ctypes.create_string_buffer(code, len(code))
    text = ctypes.create_string_buffer(license_name.encode())
    log = ctypes.create_string_buffer(_LOG_SIZE)

    def attempt(level: int) -> int:
        attribute = struct.pack(
            "=IIQQIIQII16sIIIIQIIQIII",
            types[0],
            len(code) // 8,
            ctypes.addressof(instructions),
            ctypes.addressof(text),
            level,
            _LOG_SIZE if level else 0,
            ctypes.addressof(log) if level else 0,
            0,
            0 if token < 0 else _TOKEN_FLAG,
            name.encode()[:15],
            0,
            types[1],
            *(0,) * 7,
            btf_id,
            0,
        )
        if token >= 0:
            attribute += struct.pack("=28xi", token)  # the fields between are for relocations by the kernel
        for _ in range(_LOAD_ATTEMPTS):
            try:
                return _bpf(_PROG_LOAD, attribute)[0]
            except BlockingIOError:
                continue
        return _bpf(_PROG_LOAD, attribute)[0]

    try:
        return attempt(0)
    except OSError:
        pass
    try:  # load again to get the log, which would slow down a successful load
        return attempt(1)
    except OSError as error:
        refused = VerifierError(error.errno, error.strerror, name)
        refused.log = log.value.decode("utf-8", "replace")
        raise refused from error


def open_tracepoint(program: int) -> int:
    """Attach a tracing program to what it was loaded for; it stays attached while the descriptor is open.

    Raises:
        OSError: The kernel refused.
    """
    return _bpf(_RAW_TRACEPOINT_OPEN, struct.pack("=QIIQ", 0, program, 0, 0))[0]


def create_link(program: int, target: int, attach_type: int) -> int:
    """Attach a program to a cgroup, or make an iterator's link (target 0); it stays while the descriptor is open.

    Raises:
        OSError: The kernel refused.
    """
    return _bpf(_LINK_CREATE, struct.pack("=IIII", program, target, attach_type, 0))[0]


def create_iterator(link: int) -> int:
    """Begin a walk, and return a descriptor from which its rows are read.

    Raises:
        OSError: The kernel refused.
    """
    return _bpf(_ITER_CREATE, struct.pack("=II", link, 0))[0]


def read_rows(descriptor: int, size: int) -> bytes:
    """Read the next rows of a walk, at most `size` bytes; nothing after the last row.

    Raises:
        OSError: The kernel refused.
    """
    while True:
        try:
            return os.read(descriptor, size)
        except BlockingIOError:  # a million objects without a row: go on
            continue


def create_token(bpffs: int) -> int:
    """Make a BPF token by the root of a bpffs that was delegated to this user namespace (Linux 6.9).

    Raises:
        OSError: The kernel refused.
    """
    return _bpf(_TOKEN_CREATE, struct.pack("=II", 0, bpffs))[0]


def _element(command: int, descriptor: int, key: bytes, value: Any, flags: int = 0) -> None:
    buffer = ctypes.create_string_buffer(key, len(key))
    address = 0 if value is None else ctypes.addressof(value)
    _bpf(command, struct.pack("=IIQQQ", descriptor, 0, ctypes.addressof(buffer), address, flags))


def map_lookup(descriptor: int, key: bytes, size: int) -> bytes | None:
    """The value of a key; `None` if there is none.

    Raises:
        OSError: The kernel refused.
    """
    return _found(_LOOKUP, descriptor, key, size)


def _found(command: int, descriptor: int, key: bytes, size: int) -> bytes | None:
    value = ctypes.create_string_buffer(size)
    try:
        _element(command, descriptor, key, value)
    except FileNotFoundError:
        return None
    return value.raw


def map_take(descriptor: int, key: bytes, size: int) -> bytes | None:
    """Remove a key and return its value; `None` if there is none.

    Raises:
        OSError: The kernel refused.
    """
    try:
        return _found(_LOOKUP_AND_DELETE, descriptor, key, size)
    except OSError as error:
        if error.errno not in {_ENOTSUPP, errno.EINVAL}:
            raise
    value = _found(_LOOKUP, descriptor, key, size)  # hashes have no such operation before 5.14
    if value is not None:
        map_delete(descriptor, key)
    return value


def map_update(descriptor: int, key: bytes, value: bytes) -> bool:
    """Insert a new key; false if it exists, or if the map is full.

    Raises:
        OSError: The kernel refused for another reason.
    """
    try:
        _element(_UPDATE, descriptor, key, ctypes.create_string_buffer(value, len(value)), _NOEXIST)
    except OSError as error:
        if error.errno not in {errno.EEXIST, errno.E2BIG}:
            raise
        return False
    return True


def map_delete(descriptor: int, key: bytes) -> bool:
    """Remove a key; false if there was none.

    Raises:
        OSError: The kernel refused.
    """
    try:
        _element(_DELETE, descriptor, key, None)
    except FileNotFoundError:
        return False
    return True


def map_batch(
    descriptor: int, cursor: bytes | None, sizes: tuple[int, int], most: int
) -> tuple[bytes, bytes, bytes | None]:
    """Read some entries of a hash map (Linux 5.6).

    Args:
        descriptor: The map.
        cursor: Where the last batch ended; `None`: start.
        sizes: Bytes of a key and of a value.
        most: Most entries; more only if one bucket of the hash has more.

    Returns:
        Keys, values, and the next cursor; `None` after the last.

    Raises:
        OSError: The kernel refused.
    """
    size = max(sizes[0], 4)
    before = ctypes.create_string_buffer(cursor or b"", size)
    after = ctypes.create_string_buffer(size)
    while True:
        keys = ctypes.create_string_buffer(sizes[0] * most)
        values = ctypes.create_string_buffer(sizes[1] * most)
        attribute = struct.pack(
            "=QQQQIIQQ",
            0 if cursor is None else ctypes.addressof(before),
            ctypes.addressof(after),
            ctypes.addressof(keys),
            ctypes.addressof(values),
            most,
            descriptor,
            0,
            0,
        )
        buffer = ctypes.create_string_buffer(attribute, len(attribute))
        result = _system_call()(_number(), _LOOKUP_BATCH, buffer, len(attribute))
        number = ctypes.get_errno() if result < 0 else 0
        if number == errno.ENOSPC:
            most *= 2
            continue
        if number not in {0, errno.ENOENT}:
            raise OSError(number, os.strerror(number), f"bpf({_LOOKUP_BATCH})")
        (count,) = struct.unpack_from("=I", buffer, 32)
        return (
            ctypes.string_at(keys, count * sizes[0]),
            ctypes.string_at(values, count * sizes[1]),
            None if number else after.raw,
        )


def recursion_misses(program: int) -> int:
    """How often the kernel skipped a program because it was running already (Linux 5.12; ``struct bpf_prog_info``).

    Raises:
        OSError: The kernel refused.
    """
    info = ctypes.create_string_buffer(_INFO.size)
    _bpf(_OBJ_GET_INFO, struct.pack("=IIQ", program, _INFO.size, ctypes.addressof(info)))
    return int(_INFO.unpack(info.raw)[0])
