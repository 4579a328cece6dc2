"""A client's filter for a provider, and the sources that pass it (``nstat_…_reporting_allowed``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from nstat_async._model import Provider
from nstat_async.ntstat import FilterFlag, Kernel

from ._flows import EmulatedFlow
from ._interfaces import filter_mask

GENERIC = frozenset({Provider.CONNECTION, Provider.UDP_SUBFLOW})
"""Providers that the kernel serves by its "generic" code, which has filters of its own."""
_HAS_NETWORK_ACCESS = 0x1000000
_BORING = int(FilterFlag.SUPPRESS_BORING_CLOSE | FilterFlag.SUPPRESS_BORING_POLL)
_MEDIA = ((0x4 | 0x40, "cell"), (0x8, "wifi"), (0x10, "wired"))


@attrs.frozen
class ProviderFilter:
    """A client's request for one provider in ``ADD_ALL_SRCS``."""

    bits: int = 0
    events: int = 0
    pid: int = 0
    uuid: bytes = bytes(16)


NO_FILTER = ProviderFilter()


class FilterRules:
    """How one release reads a filter."""

    def __init__(self, release: Kernel) -> None:
        self._release = release
        self._properties = filter_mask(release.version)
        self._users = release.specific_user_bits or {}
        self._user_bits = sum(self._users.values())
        self._no_zero_bytes = release.no_zero_bytes_bit or 0
        # A user-land provider of macOS 26 is asked before the owner is written into its descriptor.
        self._userland_has_pid = not release.has_details

    def allows(
        self, wanted: ProviderFilter, flow: EmulatedFlow, announced_as: int, boring: int, reported: bool
    ) -> bool:
        """True if a source may be reported; `boring` is the filter bit for this occasion, which only generic providers have."""
        bits = wanted.bits
        if not bits & (self._properties | self._user_bits | _HAS_NETWORK_ACCESS | _BORING):
            return True
        generic = flow.provider in GENERIC
        if generic and bits & boring and reported:
            return False
        fields: Mapping[str, Any] = flow.fields
        properties = flow.filter_properties
        if announced_as != flow.provider_id:
            fields = self._misread(flow, announced_as)
            properties = fields["ifnet_properties"]
        asked = bits & (self._properties | (_HAS_NETWORK_ACCESS if generic else 0))
        if asked and not asked & properties and not self._moved_on(flow, asked):
            return False
        return not bits & self._user_bits or self._owner_matches(flow, fields, wanted)

    def _misread(self, flow: EmulatedFlow, announced_as: int) -> Mapping[str, Any]:
        """The fields of another provider's descriptor, decoded from the bytes of this one, as the kernel does."""
        structure = self._release.descriptor_name(announced_as)
        assert structure is not None
        codec = self._release.layout[structure]
        return codec.decode(flow.encoded_descriptor().ljust(codec.size, b"\0"))

    @staticmethod
    def _moved_on(flow: EmulatedFlow, asked: int) -> bool:
        """Kernel UDP passes also when it has moved bytes on a medium that was asked for."""
        if flow.provider is not Provider.UDP or not flow.is_kernel_socket:
            return False
        counts = flow.counts
        for bits, medium in _MEDIA:
            moved = counts.get(f"nstat_{medium}_rxbytes", 0) or counts.get(f"nstat_{medium}_txbytes", 0)
            if asked & bits and moved:
                return True
        return False

    def _owner_matches(self, flow: EmulatedFlow, fields: Mapping[str, Any], wanted: ProviderFilter) -> bool:
        users, bits = self._users, wanted.bits
        pid, epid = fields.get("pid", 0), fields.get("epid", 0)
        if bits & users["pid"] and wanted.pid == (pid if self._userland_has_pid or not flow.userland else 0):
            return True
        if bits & users["epid"]:
            if not flow.is_kernel_socket:
                if epid == wanted.pid:
                    return True
            # A defect of the kernel: ``target == delegated ? epid : last_pid`` yields an id, and any id but 0 is true.
            elif pid and (wanted.pid or epid not in {0, pid}):
                return True
        if bits & users["uuid"] and fields.get("uuid", bytes(16)) == wanted.uuid:
            return True
        return bool(bits & users["euuid"] and fields.get("euuid", bytes(16)) == wanted.uuid)

    def hides_silence(self, wanted: ProviderFilter) -> bool:
        """True if sources that moved no bytes are not to be reported."""
        return bool(wanted.bits & self._no_zero_bytes)
