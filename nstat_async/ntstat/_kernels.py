"""Which kernel speaks: version string to layout, and the facts that moved between releases.

The rule for the layout: parse ``xnu-A.B.C…`` (a build counter after ``~`` does not
count); take the newest row whose version is not newer than the kernel's, comparing
number by number. A kernel between two known ones is therefore read like the older
neighbour, one newer than all like the newest, and both are marked as not *known*.
Where only Darwin's own release is there ("Darwin Kernel Version 24.5.0"), it decides.
"""

from __future__ import annotations

import functools
import re

import attrs

from .._errors import UsageError
from .._model import Provider
from ._layouts import Layout, layout

__all__ = ["Kernel", "Line"]

Version = tuple[int, ...]

_LAYOUTS_BY_XNU: tuple[tuple[Version, int], ...] = (
    ((1699,), 1),
    ((2050,), 2),
    ((2422,), 3),
    ((2782,), 4),
    ((3247,), 5),
    ((3789,), 6),
    ((4570,), 7),
    ((7195,), 8),
    ((8019,), 9),
    ((8019, 61, 5), 10),
    ((10002,), 11),
    ((12377,), 12),
)
_XNU_BY_DARWIN: tuple[tuple[Version, Version], ...] = (
    ((11,), (1699, 22, 73)),
    ((12,), (2050, 7, 9)),
    ((13,), (2422, 1, 72)),
    ((14,), (2782, 1, 97)),
    ((15,), (3247, 1, 106)),
    ((15, 2), (3248, 20, 55)),
    ((15, 4), (3248, 40, 184)),
    ((16,), (3789, 1, 32)),
    ((17,), (4570, 1, 46)),
    ((18,), (4903, 221, 2)),
    ((19,), (6153, 11, 26)),
    ((20,), (7195, 50, 7)),
    ((21,), (8019, 41, 5)),
    ((21, 2), (8019, 61, 5)),
    ((22,), (8792, 41, 9)),
    ((22, 2), (8792, 61, 2)),
    ((23,), (10002, 1, 13)),
    ((23, 4), (10063, 101, 15)),
    ((24,), (11215, 1, 10)),
    ((24, 4), (11417, 101, 15)),
    ((25,), (12377,)),
)
_KNOWN_MAJORS = frozenset(
    {1699, 2050, 2422, 2782, 3247, 3248, 3789, 4570, 4903, 6153, 7195, 8019, 8020, 8792, 8796, 10002, 10063, 11215}
    | {11417}
)
_XNU = re.compile(r"xnu-(\d{1,9}(?:\.\d{1,9}){0,9})")
_DARWIN = re.compile(r"(?:Darwin|Darwin Kernel Version)\s+(\d{1,4}(?:\.\d{1,4}){0,3})", re.IGNORECASE)
_BARE = re.compile(r"\s*(\d{4,9}(?:\.\d{1,9}){0,9})\s*\Z")


class Line:
    """First versions of release lines, for comparisons."""

    BATCHING = (3247,)
    WIDE_REFERENCES = (3789,)
    NATURAL = (4570,)
    QUIC = (6153,)
    FUUID = (7195,)
    EXTENDED = (8019, 41, 5)
    CONNECTIONS = (8019, 61, 5)
    PRIVILEGED_EXTRAS = (8792, 61, 2)
    ROLES = (10002,)
    ALWAYS_BATCHED = (11215,)
    DETAILS = (12377,)


_OLD_PROVIDERS = {1: (Provider.ROUTE, None), 2: (Provider.TCP, False), 3: (Provider.UDP, False)}
_PROVIDERS = {
    1: (Provider.ROUTE, None),
    2: (Provider.TCP, False),
    3: (Provider.TCP, True),
    4: (Provider.UDP, False),
    5: (Provider.UDP, True),
    6: (Provider.INTERFACE, None),
}


@attrs.frozen
class Kernel:
    """One XNU release, and what its ntstat can and cannot.

    Make it with `Kernel.parse`. Compare `version` with the rows of `Line`.
    """

    text: str
    """The string it was parsed from."""
    version: Version
    """The numbers behind ``xnu-``."""
    layout: Layout = attrs.field(repr=False)
    """The wire layout assumed for it."""
    known: bool
    """True if a layout was compiled for this release line; False for newer ones and lines in between."""

    @classmethod
    def parse(cls, text: str) -> Kernel:
        """Understand a kernel version string.

        Args:
            text: ``os.uname().version`` of a Mac, or any text with ``xnu-…`` in
                it, or a Darwin release (``Darwin 24.5.0``), or bare numbers
                (``11417.121.6``).

        Raises:
            UsageError: There is no version in it, or ntstat is not in that kernel.
        """
        version = _find_version(text)
        if version is None:
            raise UsageError(f"kernel: no XNU version in {text[:200]!r}; expected something like 'xnu-11417.121.6'")
        number = None
        for first, candidate in _LAYOUTS_BY_XNU:
            if first <= version:
                number = candidate
        if number is None:
            raise UsageError(f"kernel: xnu-{_dotted(version)} has no ntstat; it begins with xnu-1699 (OS X 10.7)")
        return cls(text, version, layout(number), version[0] in _KNOWN_MAJORS)

    @property
    def name(self) -> str:
        """``xnu-`` and the numbers."""
        return f"xnu-{_dotted(self.version)}"

    @property
    def providers(self) -> dict[int, tuple[Provider, bool | None]]:
        """Provider number to (provider, user-land or not), for this release."""
        return _providers(self.version)

    def provider_numbers(self, provider: Provider) -> list[int]:
        """The numbers that a provider has in this release: none, one, or kernel and user-land."""
        return [number for number, (known, _) in self.providers.items() if known is provider]

    def descriptor_name(self, provider_id: int) -> str | None:
        """Name of the descriptor structure of a provider; `None` for an unknown provider."""
        provider, _ = self.providers.get(provider_id, (None, None))
        return _DESCRIPTORS.get(provider) if provider is not None else None

    @property
    def can_suppress(self) -> bool:
        """True if announcements can be suppressed (since xnu-3247)."""
        return self.version >= Line.BATCHING

    @property
    def suppress_switches_updates(self) -> bool:
        """True if suppressing also makes goodbyes come as updates (since xnu-4570)."""
        return self.version >= Line.NATURAL

    @property
    def has_updates(self) -> bool:
        """True if GET_UPDATE exists (since xnu-3247)."""
        return self.version >= Line.BATCHING

    @property
    def can_describe_all(self) -> bool:
        """True if GET_SRC_DESC takes "all sources" (since xnu-2422)."""
        return self.version >= (2422,)

    @property
    def has_counts_at_goodbye(self) -> bool:
        """True if a closing source reports final counts (since xnu-2050)."""
        return self.version >= (2050,)

    @property
    def explains_removal(self) -> bool:
        """True if SRC_REMOVED says what became of the final report (since xnu-8019.61)."""
        return self.version >= Line.CONNECTIONS

    @property
    def references_are_gapless(self) -> bool:
        """True if source references count up by one and are never reused (since xnu-3789)."""
        return self.version >= Line.WIDE_REFERENCES

    @property
    def no_zero_bytes_bit(self) -> int | None:
        """Filter bit that hides sources without traffic; `None` where there is none."""
        if self.version < Line.BATCHING:
            return None
        return 0x100 if self.version < Line.WIDE_REFERENCES else 0x400000

    @property
    def specific_user_bits(self) -> dict[str, int] | None:
        """Filter bits for one pid, epid, uuid, euuid; `None` where there are none."""
        if self.version < Line.WIDE_REFERENCES:
            return None
        shift = 32 if self.version >= Line.CONNECTIONS else 24
        return {name: 1 << (shift + i) for i, name in enumerate(("pid", "epid", "uuid", "euuid"))}

    def extension_bit(self, extension: int) -> int | None:
        """Filter bit that asks for an extension item; `None` where it cannot be asked for."""
        if self.version >= Line.CONNECTIONS:
            return 1 << (40 + extension)
        if self.version >= Line.EXTENDED and extension == 1:
            return 1 << 28
        return None

    @property
    def has_details(self) -> bool:
        """True if GET_DETAILS exists (macOS 26)."""
        return self.version >= Line.DETAILS


_DESCRIPTORS = {
    Provider.TCP: "nstat_tcp_descriptor",
    Provider.QUIC: "nstat_tcp_descriptor",
    Provider.UDP: "nstat_udp_descriptor",
    Provider.UDP_SUBFLOW: "nstat_udp_descriptor",
    Provider.CONNECTION: "nstat_connection_descriptor",
    Provider.ROUTE: "nstat_route_descriptor",
    Provider.INTERFACE: "nstat_ifnet_descriptor",
}


@functools.cache
def _providers(version: Version) -> dict[int, tuple[Provider, bool | None]]:
    if version < Line.WIDE_REFERENCES:
        table: dict[int, tuple[Provider, bool | None]] = dict(_OLD_PROVIDERS)
        if version >= (2422,):
            table[4] = (Provider.INTERFACE, None)
        return table
    table = dict(_PROVIDERS)
    if version >= Line.QUIC:
        table[8] = (Provider.QUIC, True)
    if version >= Line.CONNECTIONS:
        table[9] = (Provider.CONNECTION, True)
        table[10] = (Provider.UDP_SUBFLOW, False)
    return table


def _dotted(version: Version) -> str:
    return ".".join(map(str, version))


def _find_version(text: str) -> Version | None:
    match = _XNU.search(text)
    if match is None:
        match = _BARE.match(text)
    if match is not None:
        return tuple(map(int, match.group(1).split(".")))
    match = _DARWIN.search(text)
    if match is None:
        return None
    release = tuple(map(int, match.group(1).split(".")))
    chosen: Version = (0,)
    for first, version in _XNU_BY_DARWIN:
        if first <= release:
            chosen = version
    return chosen
