"""Which kernel speaks: one table of releases, and what follows from its rows.

A row is a release line: its first version, its wire layout, and the facts that are
new with it; a fact holds until a later row changes it. A new kernel is one more row.

The rule: parse ``xnu-A.B.C…`` (a build counter after ``~`` does not count), and take the
newest row whose version is not newer than the kernel's, comparing number by number. So a
kernel between two lines is read like the older line, and one newer than all like the newest;
both are marked as not *known*. If the text has only Darwin's release ("Darwin Kernel
Version 24.5.0"), that decides.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import attrs

from .._errors import UsageError
from .._model import Provider
from ._layouts import Layout, layout

Version = tuple[int, ...]
Providers = Mapping[int, "tuple[Provider, bool | None]"]
"""Provider number to (provider, user-land or not)."""


@attrs.frozen(kw_only=True)
class _Facts:
    """The facts that changed between releases; the defaults are those of xnu-1699."""

    providers: Providers = attrs.field(
        default={1: (Provider.ROUTE, None), 2: (Provider.TCP, False), 3: (Provider.UDP, False)}, repr=False, eq=False
    )
    """Provider numbers of this release."""
    has_counts_at_goodbye: bool = False
    """True if a closing source reports final counts."""
    can_describe_all: bool = False
    """True if GET_SRC_DESC takes "all sources"."""
    splits_by_medium: bool = False
    """True if bytes are also counted by medium."""
    has_updates: bool = False
    """True if GET_UPDATE exists, several messages share a datagram, and system information can be asked for."""
    can_suppress: bool = False
    """True if announcements can be suppressed."""
    suppress_switches_updates: bool = False
    """True if suppressing also makes goodbyes come as updates."""
    references_are_unique: bool = False
    """True if a source reference is never used twice. The 32-bit numbers of earlier releases wrap after four billion."""
    explains_removal: bool = False
    """True if SRC_REMOVED says what became of the final report."""
    tells_roles: bool = False
    """True if the interface properties of a kernel TCP socket tell the direction of the connection."""
    starves_older_clients: bool = True
    """True if older clients do not hear of new sockets while a younger client does not read."""
    resumes_polls: bool = False
    """True if a paced poll without batches stops when there is no room, says so, and can be resumed."""
    charges_mbufs: bool = True
    """True if each record also takes an mbuf of 256 bytes; all mbufs may take eight times the receive buffer's limit."""
    misnames_userland_udp: bool = False
    """True if a user-land UDP source may be described under the number of user-land TCP."""
    no_zero_bytes_bit: int | None = None
    """Filter bit that hides sources without traffic; `None` if there is none."""
    specific_user_shift: int | None = None
    """Position of the four filter bits for one pid, epid, uuid, euuid; `None` if there are none."""
    extension_bits: Mapping[int, int] = attrs.field(default={}, repr=False, eq=False)
    """Extension number to the filter bit that asks for it."""
    extras: tuple[int, ...] = ()
    """Extensions that are worth asking for, and fit into a poll together."""
    has_details: bool = False
    """True if GET_DETAILS exists."""


@attrs.frozen
class Release:
    """One row: a release line."""

    first: Version
    """First version of the line."""
    layout: Layout
    """Its wire layout."""
    darwin: Mapping[Version, Version] = attrs.field(default={}, kw_only=True)
    """Darwin releases of this line, each with its oldest version."""
    known: bool = attrs.field(default=True, kw_only=True)
    """True if the layout was compiled from the headers of this line."""
    facts: Mapping[str, Any] = attrs.field(default={}, kw_only=True)
    """The facts that are new with this line."""


_WIDE_PROVIDERS: Providers = {
    1: (Provider.ROUTE, None),
    2: (Provider.TCP, False),
    3: (Provider.TCP, True),
    4: (Provider.UDP, False),
    5: (Provider.UDP, True),
    6: (Provider.INTERFACE, None),
}
_WITH_QUIC: Providers = {**_WIDE_PROVIDERS, 8: (Provider.QUIC, True)}
_WITH_CONNECTIONS: Providers = {
    **_WITH_QUIC,
    9: (Provider.CONNECTION, True),
    10: (Provider.UDP_SUBFLOW, False),
}
_DOMAIN, _FUUID, _BLUETOOTH = 1, 5, 6
"""`Extension` numbers. One domain item and the small items fit into an update of a poll (2048 bytes,
``nstat_client_append_update``); two domain items do not."""

RELEASES: list[Release] = [
    Release((1699,), layout(1), darwin={(11,): (1699, 22, 73)}),
    Release((2050,), layout(2), darwin={(12,): (2050, 7, 9)}, facts={"has_counts_at_goodbye": True}),
    Release(
        (2422,),
        layout(3),
        darwin={(13,): (2422, 1, 72)},
        facts={
            "can_describe_all": True,
            "splits_by_medium": True,
            "providers": {**_Facts().providers, 4: (Provider.INTERFACE, None)},
        },
    ),
    Release((2782,), layout(4), darwin={(14,): (2782, 1, 97)}),
    Release(
        (3247,),
        layout(5),
        darwin={(15,): (3247, 1, 106)},
        facts={"has_updates": True, "can_suppress": True, "resumes_polls": True, "no_zero_bytes_bit": 0x100},
    ),
    Release((3248,), layout(5), darwin={(15, 2): (3248, 20, 55), (15, 4): (3248, 40, 184)}),
    Release(
        (3789,),
        layout(6),
        darwin={(16,): (3789, 1, 32)},
        facts={
            "references_are_unique": True,
            "providers": _WIDE_PROVIDERS,
            "no_zero_bytes_bit": 0x400000,
            "specific_user_shift": 24,
            "misnames_userland_udp": True,
        },
    ),
    Release(
        (4570,),
        layout(7),
        darwin={(17,): (4570, 1, 46)},
        facts={"suppress_switches_updates": True, "misnames_userland_udp": False},
    ),
    Release((4903,), layout(7), darwin={(18,): (4903, 221, 2)}),
    Release((6153,), layout(7), darwin={(19,): (6153, 11, 26)}, facts={"providers": _WITH_QUIC}),
    Release((7195,), layout(8), darwin={(20,): (7195, 50, 7)}),
    Release(
        (8019,),
        layout(9),
        darwin={(21,): (8019, 41, 5)},
        facts={"extension_bits": {_DOMAIN: 1 << 28}, "extras": (_DOMAIN,)},
    ),
    Release(
        (8019, 61, 5),
        layout(10),
        darwin={(21, 2): (8019, 61, 5)},
        facts={
            "explains_removal": True,
            "providers": _WITH_CONNECTIONS,
            "specific_user_shift": 32,
            "extension_bits": {extension: 1 << (40 + extension) for extension in range(1, 7)},
        },
    ),
    Release((8020,), layout(10)),
    Release(
        (8792,),
        layout(10),
        darwin={(22,): (8792, 41, 9), (22, 2): (8792, 61, 2)},
        facts={"extras": (_DOMAIN, _FUUID)},
    ),
    Release((8796,), layout(10)),
    Release(
        (10002,),
        layout(11),
        darwin={(23,): (10002, 1, 13)},
        facts={"tells_roles": True, "charges_mbufs": False},
    ),
    Release((10063,), layout(11), darwin={(23, 4): (10063, 101, 15)}),
    Release(
        (11215,),
        layout(11),
        darwin={(24,): (11215, 1, 10)},
        facts={"extras": (_DOMAIN, _FUUID, _BLUETOOTH), "starves_older_clients": False, "resumes_polls": False},
    ),
    Release((11417,), layout(11), darwin={(24, 4): (11417, 101, 15)}),
    Release((12377,), layout(12), darwin={(25,): (12377,)}, facts={"has_details": True}),
]
"""Every release line, oldest first."""

_XNU = re.compile(r"xnu-(\d{1,9}(?:\.\d{1,9}){0,9})")
_DARWIN = re.compile(r"(?:Darwin|Darwin Kernel Version)\s+(\d{1,4}(?:\.\d{1,4}){0,3})", re.IGNORECASE)
_BARE = re.compile(r"\s*(\d{4,9}(?:\.\d{1,9}){0,9})\s*\Z")
_DESCRIPTORS = {
    Provider.TCP: "nstat_tcp_descriptor",
    Provider.QUIC: "nstat_tcp_descriptor",
    Provider.UDP: "nstat_udp_descriptor",
    Provider.UDP_SUBFLOW: "nstat_udp_descriptor",
    Provider.CONNECTION: "nstat_connection_descriptor",
    Provider.ROUTE: "nstat_route_descriptor",
    Provider.INTERFACE: "nstat_ifnet_descriptor",
}


@attrs.frozen(kw_only=True)
class Kernel(_Facts):
    """One XNU release, and what its ntstat can do. Make it with `Kernel.parse`."""

    text: str
    """The text that was parsed."""
    version: Version
    """The numbers after ``xnu-``."""
    layout: Layout = attrs.field(repr=False)
    """The wire layout that is assumed."""
    known: bool
    """True if a layout was compiled for this release line; False for newer ones and lines in between."""
    is_newer: bool
    """True if it is newer than every line of the table."""

    @classmethod
    def parse(cls, text: str) -> Kernel:
        """Understand a kernel version string.

        Args:
            text: ``os.uname().version`` of a Mac, or any text with ``xnu-…`` in
                it, or a Darwin release (``Darwin 24.5.0``), or bare numbers
                (``11417.121.6``).

        Raises:
            UsageError: The text has no version, or that kernel has no ntstat.
        """
        if not isinstance(text, str):
            raise UsageError(f"kernel: {text!r} is not a text such as 'xnu-11417.121.6'")
        version, is_newer = _find_version(text)
        if not version:
            raise UsageError(f"kernel: no XNU version in {text[:200]!r}; expected something like 'xnu-11417.121.6'")
        rows = [release for release in RELEASES if release.first <= version]
        if not rows:
            raise UsageError(f"kernel: xnu-{_dotted(version)} has no ntstat, which came with xnu-1699 (OS X 10.7)")
        facts: dict[str, Any] = {}
        for row in rows:
            facts.update(row.facts)
        known = row.known and row.first[0] == version[0] and not is_newer
        return cls(text=text, version=version, layout=row.layout, known=known, is_newer=is_newer, **facts)

    @property
    def name(self) -> str:
        """``xnu-`` and the numbers."""
        return f"xnu-{_dotted(self.version)}"

    def provider(self, number: int | None) -> tuple[Provider, bool | None]:
        """What a provider number means: (provider, user-land or not)."""
        return _UNKNOWN_PROVIDER if number is None else self.providers.get(number, _UNKNOWN_PROVIDER)

    def provider_numbers(self, provider: Provider) -> list[int]:
        """The numbers of a provider in this release: none, one, or one for the kernel and one for user land."""
        return [number for number, (known, _) in self.providers.items() if known is provider]

    def descriptor_name(self, provider_id: int) -> str | None:
        """Name of a provider's descriptor structure; `None` for an unknown provider."""
        return _DESCRIPTORS.get(self.provider(provider_id)[0])

    @property
    def specific_user_bits(self) -> dict[str, int] | None:
        """Filter bits for one pid, epid, uuid, euuid; `None` if there are none."""
        shift = self.specific_user_shift
        if shift is None:
            return None
        return {name: 1 << (shift + i) for i, name in enumerate(("pid", "epid", "uuid", "euuid"))}

    def extension_bit(self, extension: int) -> int | None:
        """Filter bit that asks for an extension item; `None` if it cannot be asked for."""
        return self.extension_bits.get(extension)


_UNKNOWN_PROVIDER: tuple[Provider, bool | None] = (Provider.UNKNOWN, None)


def _dotted(version: Version) -> str:
    return ".".join(map(str, version))


def _find_version(text: str) -> tuple[Version, bool]:
    """The kernel's version, empty if there is none, and whether it is newer than the table."""
    match = _XNU.search(text) or _BARE.match(text)
    if match is not None:
        version = _numbers(match)
        return version, version[0] > RELEASES[-1].first[0]
    match = _DARWIN.search(text)
    if match is None:
        return (), False
    release = _numbers(match)
    pairs = [pair for row in RELEASES for pair in row.darwin.items()]
    nearest = max((pair for pair in pairs if pair[0] <= release), default=((), (0,)))[1]
    return nearest, release[0] > max(pairs)[0][0]


def _numbers(match: re.Match[str]) -> Version:
    return tuple(map(int, match.group(1).split(".")))
