"""Routes and interfaces: sources that are not flows, and their events."""

from __future__ import annotations

from typing import Any

from .._events import InterfaceUpdated, RouteUpdated
from .._model import Counts, Interface, Provider
from ._constants import LinkStatus
from ._descriptors import DescriptorReader
from ._translate import decode_endpoint, decode_text, interface_kind


def other_event(
    time: float, identifier: str, reader: DescriptorReader, descriptor: bytes, counts: Counts, *, removed: bool
) -> RouteUpdated | InterfaceUpdated | None:
    """The event of a report about a route or an interface; `None` if there is nothing to report.

    Args:
        time: Time of the report.
        identifier: Id of a route, which is unique while the monitor lives.
        reader: Reader of the descriptor.
        descriptor: The descriptor.
        counts: The counters.
        removed: True for the last report.
    """
    if reader.codec is None:
        return None
    fields: dict[str, Any] = reader.fields(descriptor, 0, len(descriptor))
    if reader.provider is Provider.ROUTE:
        return RouteUpdated(
            time,
            identifier,
            decode_endpoint(fields["dst"]),
            decode_endpoint(fields["mask"]),
            decode_endpoint(fields["gateway"]),
            reader.translator.interface(fields["ifindex"], None),
            fields["flags"],
            counts,
            removed,
        )
    if removed:
        return None
    interface = Interface(
        fields["ifindex"], decode_text(fields["name"]), interface_kind(fields.get("ifnet_properties"))
    )
    link = _link_values(fields, [field.name for field in reader.codec.fields])
    return InterfaceUpdated(
        time, interface, counts, decode_text(fields["description"]), fields["threshold"] or None, link
    )


def _link_values(fields: dict[str, Any], names: list[str]) -> tuple[tuple[str, int], ...]:
    """The values of a link's status that the kernel marked valid."""
    kind = fields.get("link_status.link_status_type", 0)
    block = {LinkStatus.CELLULAR: "cellular", LinkStatus.WIFI: "wifi"}.get(kind)
    if block is None:
        return ()
    at = f"link_status.u.{block}."
    valid = fields[at + "valid_bitmask"]
    order = [name[len(at) :] for name in names if name.startswith(at) and not name.endswith("valid_bitmask")]
    if block == "wifi" and "ul_error_rate" in order:
        # The bits are in the order of the fields (``NSTAT_IFNET_DESC_…_VALID``), but for these two.
        lost, rate = order.index("ul_bytes_lost"), order.index("ul_error_rate")
        order[lost], order[rate] = order[rate], order[lost]
    return tuple((name, fields[at + name]) for bit, name in enumerate(order) if valid >> bit & 1)
