"""Chooses the reader of a descriptor, by its provider, its length and the facts about the kernel.

Descriptors of a known kernel are read by its own layout, or by an older one with the same
length, never by a newer one. Bytes after the structure are ignored, and a descriptor shorter
than all structures is not read. On a kernel without a compiled layout, the length may select
any layout. If it fits none, the part that newer kernels have kept in place is read, provided that
its values are possible, until a proof tells more.
"""

from __future__ import annotations

from .._model import Provider
from ._descriptors import DescriptorReader
from ._kernels import RELEASES
from ._layouts import StructCodec
from ._translate import Translator

_STABLE = {"nstat_tcp_descriptor": "pname", "nstat_udp_descriptor": "pname"}
"""Structure to the last field that newer kernels have kept in place."""
_FIRST_NATURAL = 7
"""The first naturally aligned layout; a new kernel's descriptor has the length of one from here on, or another one."""
_MAX_READERS = 1024
_MAX_SURPRISES = 256


class Readers:
    """The readers of one control socket, made when first needed."""

    def __init__(self, translator: Translator) -> None:
        self.translator = translator
        self.kernel = translator.kernel
        self.proven: dict[tuple[str, int], StructCodec] = {}
        """Proven structures, by name and length."""
        self.silent = DescriptorReader(translator, -1, Provider.INTERFACE, None, None)
        """The reader of sources that are not reported."""
        self._bare: dict[int | None, DescriptorReader] = {}
        self._readers: dict[tuple[int, int], DescriptorReader] = {}
        self._surprises: set[tuple[int, int]] = set()

    def prove(self, codecs: dict[tuple[str, int], StructCodec]) -> None:
        """From now on read these structures as proven, and no others."""
        self.proven = codecs
        self._readers.clear()

    def is_proven(self, provider_id: int, length: int) -> bool:
        """True if descriptors of this length are read by a proven structure."""
        return (self.kernel.descriptor_name(provider_id), length) in self.proven

    def bare(self, provider_id: int | None) -> DescriptorReader:
        """The reader of a source without a description; all unknown providers share one."""
        if provider_id not in self.kernel.providers:
            provider_id = None
        reader = self._bare.get(provider_id)
        if reader is None:
            reader = self._bare[provider_id] = self._make(provider_id, None)
        return reader

    def choose(self, provider_id: int, data: bytes, at: int, end: int) -> DescriptorReader:
        """The reader of the descriptor ``data[at:end]``."""
        key = (provider_id, end - at)
        reader = self._readers.get(key)
        if reader is None:
            if len(self._readers) >= _MAX_READERS:
                self._readers.clear()  # only garbage has so many lengths
            reader = self._readers[key] = self._make_for(*key)
        if self.kernel.misnames_userland_udp and reader.provider is Provider.TCP and reader.userland:
            if reader.codec is not None and not reader.state_is_sane(data, at):
                # xnu-3789 describes late user-land UDP flows under the number of user-land TCP,
                # with the UDP descriptor padded to TCP's length; UDP has no state there.
                return self._misnamed_udp()
        elif reader.doubtful and not reader.looks_sane(data, at):
            return self.bare(provider_id)
        return reader

    def surprise(self, provider_id: int, length: int) -> str | None:
        """For the first descriptor of a length that is not the layout's: a text if it cannot be read, otherwise ``""``.

        `None` for the usual length, and for later descriptors.
        """
        name = self.kernel.descriptor_name(provider_id)
        codec = self.kernel.layout.find(name) if name is not None else None
        key = (provider_id, length)
        if codec is None or codec.size == length or key in self._surprises or len(self._surprises) > _MAX_SURPRISES:
            return None
        self._surprises.add(key)
        if length > codec.size:
            return ""
        return f"descriptor of provider {provider_id} has {length} bytes, expected {codec.size}: not read"

    def _make(
        self, provider_id: int | None, codec: StructCodec | None, trusted: int | None = None, *, doubtful: bool = False
    ) -> DescriptorReader:
        provider, userland = self.kernel.provider(provider_id)
        number = -1 if provider_id is None else provider_id
        return DescriptorReader(self.translator, number, provider, userland, codec, trusted, doubtful=doubtful)

    def _misnamed_udp(self) -> DescriptorReader:
        key = (3, -1)
        reader = self._readers.get(key)
        if reader is None:
            codec = self.kernel.layout["nstat_udp_descriptor"]
            reader = self._readers[key] = DescriptorReader(self.translator, 5, Provider.UDP, True, codec)
        return reader

    def _make_for(self, provider_id: int, length: int) -> DescriptorReader:
        kernel = self.kernel
        name = kernel.descriptor_name(provider_id)
        codec = kernel.layout.find(name) if name is not None else None
        if name is None or codec is None:
            return self._make(provider_id, None)
        proven = self.proven.get((name, length))
        if proven is not None:
            return self._make(provider_id, proven)
        other = codec if length == codec.size else self._by_length(name, length)
        if other is not None or length < codec.size:
            return self._make(provider_id, other)
        if kernel.known:
            return self._make(provider_id, codec)
        last = _STABLE.get(name)
        trusted = codec.by_name[last].end if last is not None else None
        return self._make(provider_id, codec, trusted, doubtful=True)

    def _by_length(self, name: str, length: int) -> StructCodec | None:
        """The structure of another release with this length; for a known kernel, of an older release only."""
        own = self.kernel.layout.number
        if own < _FIRST_NATURAL:
            return None
        newest = own if self.kernel.known else RELEASES[-1].layout.number
        layouts = {row.layout.number: row.layout for row in RELEASES}
        codecs = (layouts[number].find(name) for number in range(newest, _FIRST_NATURAL - 1, -1))
        return next((codec for codec in codecs if codec is not None and codec.size == length), None)
