"""Proof of a layout: what a living kernel says about flows with known values.

A kernel newer than every published one may have moved fields. History shows how:
something was *inserted* in the middle of a descriptor; fields were never reordered within one
release line. So the probe looks for the insertions that explain the kernel's reports:

1. Find the descriptors of the known flows by their addresses and ports.
2. Their length minus that of the known layout is the size of the insertion. It may be at
   every field boundary; each of these places is a hypothesis.
3. A hypothesis survives if every check holds in every descriptor: addresses,
   ports, pid, unique pid, uid, state, interface, times in order, the executable's
   UUID twice (or the responsible process' UUID as the second one).
4. A field is read where *all* survivors have it. If they disagree, it is not read (`None`). If
   no hypothesis survives, only the fields before the first failing check are read.

Byte counters do not depend on descriptors; they are checked too, exactly.
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
"""Most polls in which the known flows are looked for."""
_LONGEST = 4096
"""Most bytes of a descriptor; the longest known one has a quarter of this."""


@attrs.frozen(kw_only=True)
class ProofResult:
    """What the probe found."""

    proof: Proof
    codecs: dict[tuple[str, int], StructCodec]
    """The structures that differ from the known ones, by name and length."""
    notes: tuple[str, ...]
    """What was found, for a person."""


class Proving:
    """The steps of a proof: known flows are opened after a poll, looked for in the next ones, and closed.

    Args:
        kernel: The kernel, with its assumed layout.
        wanted: True if each control socket is to be proven.
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
        """The result so far."""

    def begin_again(self) -> None:
        """Another control socket took over: prove its reports too."""
        if self.probe is not None:
            self.probe, self._polls = LayoutProbe(self._kernel, self.probe.evidence), 0
        else:
            self._due = self._wanted and not self.awaits_flows

    def flows_opened(self, evidence: Evidence | None, reason: str) -> None:
        """Take in the known flows, or the reason why there are none."""
        self.awaits_flows = False
        if evidence is not None:
            self.probe, self._polls = LayoutProbe(self._kernel, evidence), 0
        else:
            note = f"the layout cannot be proven here: no known flows can be opened{reason}"
            self.result = attrs.evolve(self.result, notes=(note,))

    def poll_ended(self) -> OpenEvidence | CloseEvidence | None:
        """The next request: to open known flows, or to close them because `result` is new; `None`: neither."""
        if self._due:
            self._due, self.awaits_flows = False, True
            return OpenEvidence()
        self._polls += 1
        if self.probe is None or (not self.probe.complete and self._polls < _MOST_POLLS):
            return None
        self.result, self.probe = self.probe.conclude(), None
        return CloseEvidence()


def proven_structs(codecs: dict[tuple[str, int], StructCodec]) -> tuple[ProvenStruct, ...]:
    """The structures that were found, in the form of a recording."""
    places = {key: tuple((field.name, field.offset) for field in codec.fields) for key, codec in codecs.items()}
    return tuple(ProvenStruct(name, length, offsets) for (name, length), offsets in places.items())


def codecs_of(kernel: Kernel, proven: Iterable[ProvenStruct]) -> dict[tuple[str, int], StructCodec]:
    """The structures in a recording; impossible structures and offsets are left out."""
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
    """Collects the kernel's reports about known flows, and judges the layout.

    Args:
        kernel: The kernel, with its assumed layout.
        evidence: The flows that are open.
    """

    def __init__(self, kernel: Kernel, evidence: Evidence) -> None:
        self.kernel = kernel
        self.evidence = evidence
        self._samples: dict[Provider, list[_Sample]] = {Provider.TCP: [], Provider.UDP: []}
        self._lengths: dict[Provider, set[int]] = {provider: set() for provider in self._samples}
        """Lengths of all descriptors that were seen, by provider."""
        self._counts: dict[int, Values] = {}
        """Counters by reference: old kernels send counters and descriptions separately."""
        self._patterns = [(flow, _wire(flow.local), _wire(flow.remote)) for flow in evidence.flows]

    def observe(self, ref: int, provider_id: int | None, raw: Values | None, descriptor: bytes) -> None:
        """Collect a report if it is about one of the known flows."""
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
            # The other end of the same connection has the same two addresses, exchanged.
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
        """The result of all observations."""
        notes: list[str] = []
        codecs: dict[tuple[str, int], StructCodec] = {}
        proofs = [self._judge(provider, codecs, notes) for provider in self._samples]
        if not self._counts_agree(notes):
            proofs.append(Proof.UNKNOWN)
        worst = max(proofs, key=_ORDER.index)
        return ProofResult(proof=worst, codecs=codecs, notes=tuple(notes))

    def _counts_agree(self, notes: list[str]) -> bool:
        """True if the byte counters of the known flows are exact."""
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
        """Judge the descriptors of one provider; findings are added to `codecs` and `notes`."""
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
                self._read_beginning(provider, known, codecs)
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
        # Most processes have no persona, and the number for that appears nowhere by chance.
        telling = [h for h in survivors if all(_read(known, "persona_id", h, s) == _NO_PERSONA for s in samples)]
        return telling or survivors

    def _read_beginning(
        self, provider: Provider, known: StructCodec, codecs: dict[tuple[str, int], StructCodec]
    ) -> None:
        """No hypothesis explains these descriptors: read only the fields before the first one with a wrong value."""
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
"""Fields with one right value, and the evidence that has it; empty: all evidence."""
_OTHER_MEDIA = int(
    InterfaceProperty.CELLULAR | InterfaceProperty.WIFI | InterfaceProperty.WIRED | InterfaceProperty.AWDL
    | InterfaceProperty.VPN | InterfaceProperty.COMPANIONLINK
)  # fmt: skip
_ORDER = (Proof.VERIFIED, Proof.ASSUMED, Proof.PROBED, Proof.UNKNOWN)


def _offset(field: Field) -> int:
    return field.offset


def _wire(endpoint: Endpoint) -> bytes:
    """The bytes of an address slot that identify an endpoint, including the length byte."""
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
    """A field under a hypothesis; `None` if it would not fit, or the descriptor lacks it."""
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
    # A loopback socket has no delegate, so the second UUID is its own, or, without a pid, the responsible process'.
    owner = read("euuid")
    responsible = bool(owner) and any(owner) and read("epid") == read("eupid") == 0
    return responsible or bool(owner == read("uuid"))
