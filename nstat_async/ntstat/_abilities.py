"""Makes the `Capabilities` of a session: whose flows it sees, and what a user should know about this kernel."""

from __future__ import annotations

from collections.abc import Iterator

from .._model import Capabilities, Proof, Visibility
from ._client import Client
from ._constants import error_text
from ._kernels import Kernel
from ._proof import ProofResult
from ._setup import Setup
from ._subscription import Subscription


def capabilities_of(
    setup: Setup, kernel: Kernel, client: Client | None, found: ProofResult, *, has_polled: bool
) -> Capabilities:
    """The capabilities of a session.

    Args:
        setup: The session's setup.
        kernel: The kernel.
        client: The client whose table has the flows; `None`: there is none yet.
        found: What is known of the layout.
        has_polled: A poll was complete.
    """
    return Capabilities(
        backend=setup.backend,
        kernel=kernel.text,
        providers=frozenset() if client is None else frozenset(client.providers),
        tcp_counts=True,
        udp_counts=True,
        per_medium_bytes=kernel.splits_by_medium,
        final_counts=kernel.has_counts_at_goodbye,
        short_lived=kernel.has_counts_at_goodbye,
        flows=_visibility(setup, kernel, client, has_polled=has_polled),
        processes=Visibility.ALL,
        layout=kernel.layout.name,
        layout_proof=found.proof,
        receive_buffer=None if client is None else client.receive_buffer,
        notes=(*found.notes, *_notes(kernel, client, found.proof)),
    )


def _visibility(setup: Setup, kernel: Kernel, client: Client | None, *, has_polled: bool) -> Visibility:
    """Whose flows are seen: everybody's up to macOS 26; later kernels show ordinary users only their own."""
    if client is not None and not isinstance(client, Subscription):
        return Visibility.UNKNOWN
    own, flows = setup.own_uid, () if client is None else client.table.flows()
    uids = {flow.process.uid for flow, _ in flows if flow.process is not None} - {None}
    if (own is not None and uids - {own}) or not kernel.is_newer:
        return Visibility.ALL
    # The system's own users always have sockets.
    return Visibility.OWN if own and uids and has_polled else Visibility.UNKNOWN


def _notes(kernel: Kernel, client: Client | None, proof: Proof) -> Iterator[str]:
    if not kernel.known and proof is Proof.UNKNOWN:
        yield f"{kernel.name} is newer than the layouts that were compiled; {kernel.layout.name} is assumed"
    if not kernel.has_counts_at_goodbye:
        yield "this kernel reports a close up to a minute late and without final counts"
    if isinstance(client, Subscription) and client.has_small_buffer:
        how = "polls are answered in portions" if kernel.resumes_polls else "what overflows is asked for one by one"
        more = ", and only every fifth poll reads all descriptions" if kernel.has_updates else ""
        yield f"the receive buffer is small: {how}{more}"
    if kernel.is_newer:
        yield "this kernel may show an ordinary user only that user's flows; root may see more"
    refused, wanted = ({}, frozenset()) if client is None else (client.refused, client.options.providers)
    for provider, errno in refused.items():
        if provider in wanted:
            yield f"{provider.value}: refused ({error_text(errno)})"
