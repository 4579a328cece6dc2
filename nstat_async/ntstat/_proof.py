"""Proof of a layout: what a living kernel says about flows of known values.

A kernel newer than every published one may have moved fields. History says how:
something was *inserted* in the middle of a descriptor, never reordered within one
release line. So the probe asks which insertions explain what the kernel says:

1. Find the descriptors of the known flows by their addresses and ports.
2. The surplus in length over the known layout is the size of the insertion. Every
   field boundary is a place where it may be; each place is a hypothesis.
3. A hypothesis survives when every check holds in every descriptor: addresses,
   ports, pid, unique pid, uid, state, interface, times in order, the executable's
   UUID twice (or the responsible process' in the second place).
4. A field is read where *all* survivors put it. Where they disagree it is not read: `None`. Where
   none survives, what stands before the first check that fails is read, and nothing behind it.

Byte counters are checked beside it, exactly, for they do not depend on descriptors.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from typing import Any

import attrs

from .._model import Endpoint, Proof, Provider
from ._constants import DARWIN_AF_INET, DARWIN_AF_INET6, TCP_STATES, InterfaceProperty
from ._counters import Values
from ._evidence import CloseEvidence, Evidence, KnownFlow, OpenEvidence
from ._kernels import Kernel
from ._layouts import Field, StructCodec
from ._setup import ProvenStruct
from ._translate import decode_endpoint

_STRUCTS = {Provider.TCP: "nstat_tcp_descriptor", Provider.UDP: "nstat_udp_descriptor"}
_MAX_SAMPLES = 64
_NO_PERSONA = 0xFFFFFFFF
"""``PERSONA_ID_NONE``."""
_MOST_POLLS = 3
"""Polls in which the known flows are looked for."""
_LONGEST = 4096
"""Bytes of a descriptor; the longest known is a quarter of it."""


@attrs.frozen(kw_only=True)
class ProofResult:
    """What the probe found."""

    proof: Proof
    codecs: dict[tuple[str, int], StructCodec]
    """Structure name and length to the structure to read it with, where it differs from the known one."""
    notes: tuple[str, ...]
    """What was found, for a person."""


class Proving:
    """The course of a proof: known flows are opened after a poll, looked for in the next ones, and closed.

    Args:
        kernel: The kernel, with its assumed layout.
        wanted: True if each control socket is to give a proof.
    """

    def __init__(self, kernel: Kernel, *, wanted: bool) -> None:
        self._kernel = kernel
        self._wanted = self._due = wanted
        self._polls = 0
        self.awaits_flows = False
        """The known flows are being opened."""
        self.probe: LayoutProbe | None = None
        """Looks at reports while they are open."""
        self.result = ProofResult(proof=Proof.ASSUMED if kernel.known else Proof.UNKNOWN, codecs={}, notes=())
        """What is known by now."""

    def begin_again(self) -> None:
        """Another control socket: what it says has to be looked at, too."""
        if self.probe is not None:
            self.probe, self._polls = LayoutProbe(self._kernel, self.probe.evidence), 0
        else:
            self._due = self._wanted and not self.awaits_flows

    def flows_opened(self, evidence: Evidence | None, reason: str) -> None:
        """The known flows are there, or why they are not."""
        self.awaits_flows = False
        if evidence is not None:
            self.probe, self._polls = LayoutProbe(self._kernel, evidence), 0
        else:
            note = f"the layout cannot be proven here: no known flows can be opened{reason}"
            self.result = attrs.evolve(self.result, notes=(note,))

    def poll_ended(self) -> OpenEvidence | CloseEvidence | None:
        """Whether flows are to be opened now, or closed because `result` is new; `None`: neither."""
        if self._due:
            self._due, self.awaits_flows = False, True
            return OpenEvidence()
        self._polls += 1
        if self.probe is None or (not self.probe.complete and self._polls < _MOST_POLLS):
            return None
        self.result, self.probe = self.probe.conclude(), None
        return CloseEvidence()


def proven_structs(codecs: dict[tuple[str, int], StructCodec]) -> tuple[ProvenStruct, ...]:
    """What was found, as a recording holds it."""
    places = {key: tuple((field.name, field.offset) for field in codec.fields) for key, codec in codecs.items()}
    return tuple(ProvenStruct(name, length, offsets) for (name, length), offsets in places.items())


def codecs_of(kernel: Kernel, proven: Iterable[ProvenStruct]) -> dict[tuple[str, int], StructCodec]:
    """What a recording says was found; a structure or a place that cannot be is left out."""
    codecs = {}
    for found in proven:
        if found.name not in _STRUCTS.values() or found.length > _LONGEST:
            continue
        known = kernel.layout[found.name].by_name
        fields = [attrs.evolve(known[name], offset=at) for name, at in dict(found.offsets).items() if name in known]
        if all(field.offset >= 0 and field.end <= found.length for field in fields):
            codecs[found.name, found.length] = StructCodec(found.name, found.length, tuple(sorted(fields, key=_offset)))
    return codecs


@attrs.frozen
class _Sample:
    flow: KnownFlow
    ref: int
    raw: Values | None
    descriptor: bytes


Mapping = dict[str, int]
"""Field name to offset, under one hypothesis."""


class LayoutProbe:
    """Collects the kernel's words about known flows and judges the layout.

    Args:
        kernel: The kernel, with its assumed layout.
        evidence: The flows that are open.
    """

    def __init__(self, kernel: Kernel, evidence: Evidence) -> None:
        self.kernel = kernel
        self.evidence = evidence
        self._samples: dict[Provider, list[_Sample]] = {Provider.TCP: [], Provider.UDP: []}
        self._lengths: dict[Provider, set[int]] = {provider: set() for provider in self._samples}
        """Of all descriptors that were seen."""
        self._counts: dict[int, Values] = {}
        """By reference: old kernels send counters and descriptions apart."""
        self._patterns = [(flow, _wire(flow.local), _wire(flow.remote)) for flow in evidence.flows]

    def observe(self, ref: int, provider_id: int | None, raw: Values | None, descriptor: bytes) -> None:
        """Look at a report: is it about one of the known flows?"""
        if provider_id is None:
            if raw is not None:
                self._counts[ref] = raw
            return
        provider, userland = self.kernel.providers.get(provider_id, (Provider.UNKNOWN, None))
        samples = self._samples.get(provider)
        if samples is None or userland or len(samples) >= _MAX_SAMPLES:
            return
        if len(self._lengths[provider]) < _MAX_SAMPLES:
            self._lengths[provider].add(len(descriptor))
        for flow, local, remote in self._patterns:
            if flow.provider is not provider:
                continue
            # The other end of the same connection has the same two addresses, the other way round.
            first, second = descriptor.find(local), descriptor.find(remote)
            if 0 <= first < second:
                samples.append(_Sample(flow, ref, raw, descriptor))
                return

    @property
    def complete(self) -> bool:
        """True once every known flow was seen, with its counters."""
        seen = {
            sample.flow
            for samples in self._samples.values()
            for sample in samples
            if sample.raw is not None or sample.ref in self._counts
        }
        return len(seen) == len(set(self.evidence.flows))

    def conclude(self) -> ProofResult:
        """Judge by what was observed."""
        notes: list[str] = []
        codecs: dict[tuple[str, int], StructCodec] = {}
        proofs = [self._judge(provider, codecs, notes) for provider in self._samples]
        if not self._counts_agree(notes):
            proofs.append(Proof.UNKNOWN)
        worst = max(proofs, key=_ORDER.index)
        return ProofResult(proof=worst, codecs=codecs, notes=tuple(notes))

    def _counts_agree(self, notes: list[str]) -> bool:
        """Byte counters of the known flows, exactly."""
        counted = [
            (sample.flow, raw)
            for samples in self._samples.values()
            for sample in samples
            if (raw := sample.raw or self._counts.get(sample.ref)) is not None
        ]
        wrong = [flow for flow, raw in counted if (raw[1], raw[3]) != (flow.rx_bytes, flow.tx_bytes)]
        if wrong:
            notes.append(
                f"byte counters of {len(wrong)} of {len(counted)} known flows are not what was sent and received"
            )
        elif not counted:
            notes.append("byte counters could not be checked")
        else:
            notes.append(f"byte counters of {len(counted)} known flows are exact")
        return bool(counted) and not wrong

    def _judge(self, provider: Provider, codecs: dict[tuple[str, int], StructCodec], notes: list[str]) -> Proof:
        """What the descriptors of one provider say; what was found goes into `codecs` and `notes`."""
        known, samples = self.kernel.layout[_STRUCTS[provider]], self._samples[provider]
        wanted = sum(1 for flow in self.evidence.flows if flow.provider is provider)
        found = len({s.flow for s in samples})
        lengths = sorted({len(s.descriptor) for s in samples})
        survivors: list[Mapping] = []
        if found < wanted or not samples:
            note = f"{found} of {wanted} known flows were found"
        elif len(lengths) != 1 or lengths[0] < known.size:
            note = f"descriptors of {lengths} bytes, {known.size} are known"
        else:
            note = f"no single insertion explains the descriptor of {lengths[0]} bytes"
            survivors = self._survivors(provider, known, lengths[0] - known.size)
        if not survivors:
            notes.append(f"{provider.value}: {note}")
            if not self.kernel.known and (found == wanted or not samples):
                self._believe_beginning(provider, known, codecs)
            return Proof.UNKNOWN
        places = {field.name: {h[field.name] for h in survivors} for field in known.fields}
        fields = [attrs.evolve(f, offset=min(places[f.name])) for f in known.fields if len(places[f.name]) == 1]
        codecs[known.name, lengths[0]] = StructCodec(known.name, lengths[0], tuple(sorted(fields, key=_offset)))
        unclear = [name for name, offsets in places.items() if len(offsets) > 1]
        moved = [field.name for field in fields if field.offset != known.by_name[field.name].offset]
        if unclear:
            notes.append(f"{provider.value}: not told apart and left out: {', '.join(unclear)}")
        if moved:
            notes.append(f"{provider.value}: moved by {lengths[0] - known.size} bytes: {', '.join(moved)}")
        else:
            notes.append(f"{provider.value}: every field that could be checked is where it is expected")
        return Proof.PROBED if moved or unclear else Proof.VERIFIED

    def _survivors(self, provider: Provider, known: StructCodec, surplus: int) -> list[Mapping]:
        """The hypotheses that explain every sample."""
        samples, checks = self._samples[provider], self._checks(provider)
        survivors = [h for h in _hypotheses(known, surplus) if all(_holds(checks, known, h, s) for s in samples)]
        # One end of a loopback connection may lack the bit (seen on Darwin 27), but not all.
        if "ifnet_properties" in known:
            survivors = [h for h in survivors if any(_is_loopback(known, h, s) for s in samples)]
        # Most processes have no persona, which the kernel says by a number that is nowhere by chance.
        telling = [h for h in survivors if all(_read(known, "persona_id", h, s) == _NO_PERSONA for s in samples)]
        return telling or survivors

    def _believe_beginning(
        self, provider: Provider, known: StructCodec, codecs: dict[tuple[str, int], StructCodec]
    ) -> None:
        """Nothing explains these descriptors: read what stands before the first field that is not as it should be."""
        (unmoved,), samples, end = _hypotheses(known, 0), self._samples[provider], 0
        lengths = {len(sample.descriptor) for sample in samples} or self._lengths[provider] - {known.size}
        checks = dict(self._checks(provider))
        for field in known.fields if samples else ():
            if field.name in _EXACT and getattr(self.evidence, _EXACT[field.name] or "flows") is not None:
                read = [(_read(known, field.name, unmoved, sample), sample) for sample in samples]
                if not all(value is not None and checks[field.name](value, sample) for value, sample in read):
                    break
                end = field.end
        fields = tuple(field for field in known.fields if field.end <= end)
        codecs.update({(known.name, length): StructCodec(known.name, length, fields) for length in lengths})

    def _checks(self, provider: Provider) -> tuple[tuple[str, Callable[[Any, _Sample], bool]], ...]:
        evidence = self.evidence

        def state(value: int, sample: _Sample) -> bool:
            return sample.flow.state is None or (value < len(TCP_STATES) and TCP_STATES[value] is sample.flow.state)

        def interface(value: int, sample: _Sample) -> bool:  # noqa: ARG001
            return evidence.interface_index is None or value == evidence.interface_index

        def printable(value: bytes, sample: _Sample) -> bool:  # noqa: ARG001
            text = value.partition(b"\0")[0]
            return bool(text) and all(byte >= 0x20 for byte in text)

        checks: tuple[tuple[str, Callable[[Any, _Sample], bool]], ...] = (
            ("local", lambda value, sample: decode_endpoint(value) == sample.flow.local),
            ("remote", lambda value, sample: decode_endpoint(value) == sample.flow.remote),
            ("pid", lambda value, sample: value == evidence.pid),  # noqa: ARG005
            ("upid", lambda value, sample: evidence.unique_pid in {None, value}),  # noqa: ARG005
            ("uid", lambda value, sample: value == evidence.uid),  # noqa: ARG005
            ("pname", printable),
            ("ifindex", interface),
            ("ifnet_properties", lambda value, sample: value < 1 << 28 and not value & _OTHER_MEDIA),  # noqa: ARG005
            ("fallback_mode", lambda value, sample: value <= 4),  # noqa: ARG005
            ("uuid", lambda value, sample: any(value) and evidence.uuid in {None, value}),  # noqa: ARG005
        )
        return (*checks, ("state", state)) if provider is Provider.TCP else checks


_EXACT = {
    "upid": "unique_pid", "ifindex": "interface_index", "uuid": "uuid",
    "pid": "", "local": "", "remote": "", "uid": "", "state": "",
}  # fmt: skip
"""Fields with one right value, and which evidence has it; empty: all evidence."""
_OTHER_MEDIA = int(
    InterfaceProperty.CELLULAR | InterfaceProperty.WIFI | InterfaceProperty.WIRED | InterfaceProperty.AWDL
    | InterfaceProperty.VPN | InterfaceProperty.COMPANIONLINK
)  # fmt: skip
_ORDER = (Proof.VERIFIED, Proof.ASSUMED, Proof.PROBED, Proof.UNKNOWN)


def _offset(field: Field) -> int:
    return field.offset


def _wire(endpoint: Endpoint) -> bytes:
    """The bytes of an address slot that tell an endpoint (length byte included)."""
    if len(endpoint.packed) == 4:
        return struct.pack(">BBH4s", 16, DARWIN_AF_INET, endpoint.port, endpoint.packed)
    return struct.pack(">BBHI16s", 28, DARWIN_AF_INET6, endpoint.port, 0, endpoint.packed)


def _hypotheses(known: StructCodec, surplus: int) -> list[Mapping]:
    """The layouts that one insertion of `surplus` bytes at a field boundary makes."""
    if surplus == 0:
        return [{field.name: field.offset for field in known.fields}]
    places: Iterable[int] = sorted({field.offset for field in known.fields} | {known.size})
    return [
        {field.name: field.offset + (surplus if field.offset >= place else 0) for field in known.fields}
        for place in places
    ]


def _read(known: StructCodec, name: str, mapping: Mapping, sample: _Sample) -> Any:
    """A field under a hypothesis; `None` where it would not fit, or is in no descriptor."""
    field, data = known.by_name.get(name), sample.descriptor
    if field is None or mapping[name] + field.size > len(data):
        return None
    return known.read(name, data, mapping[name] - field.offset)


def _is_loopback(known: StructCodec, mapping: Mapping, sample: _Sample) -> bool:
    return bool(_read(known, "ifnet_properties", mapping, sample) & InterfaceProperty.LOOPBACK)


def _holds(
    checks: tuple[tuple[str, Callable[[Any, _Sample], bool]], ...],
    known: StructCodec,
    mapping: Mapping,
    sample: _Sample,
) -> bool:
    """True if every check holds for a descriptor read under a hypothesis."""

    def read(name: str) -> Any:
        return _read(known, name, mapping, sample)

    for name, check in checks:
        if name in known:
            value = read(name)
            if value is None or not check(value, sample):
                return False
    if "start_timestamp" in known and not 0 < read("start_timestamp") <= read("timestamp"):
        return False
    if "euuid" not in known:
        return True
    # Nobody delegates a loopback socket, so the second UUID is the own one's, or without a pid the responsible process'.
    owner = read("euuid")
    responsible = bool(owner) and any(owner) and read("epid") == read("eupid") == 0
    return responsible or bool(owner == read("uuid"))
