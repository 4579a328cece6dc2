"""Writing a live conversation to a recording."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

from .. import __version__
from .._contract import Core
from .._errors import UsageError
from ..recording import JsonLinesWriter, RecordingInfo, RecordingWriter

__all__ = ["FileRecorder", "open_recorder"]


class FileRecorder:
    """Writes the pump's conversation to a file.

    Args:
        file: The file; closed with the recorder.
        info: Facts about the conversation.
        answer_to_json: Turns a look-up's answer into something JSON can hold.
        json_lines: Write JSON Lines instead of the library's own format.
    """

    def __init__(
        self, file: BinaryIO, info: RecordingInfo, answer_to_json: Callable[[Any], Any], *, json_lines: bool = False
    ) -> None:
        self._file = file
        self._writer = JsonLinesWriter(file, info) if json_lines else RecordingWriter(file, info)
        self._answer_to_json = answer_to_json

    def to_kernel(self, data: bytes, time_ns: int, client: int) -> None:
        """A datagram was sent."""
        self._writer.to_kernel(data, time_ns, client)

    def from_kernel(self, data: bytes, time_ns: int, client: int) -> None:
        """A datagram was received."""
        self._writer.from_kernel(data, time_ns, client)

    def answer(self, token: int, answer: object, time_ns: int) -> None:
        """A look-up was answered."""
        value = self._answer_to_json(answer)
        if value is not None:
            self._writer.answer({"token": token, "answer": value}, time_ns)

    def close(self) -> None:
        """Flush and close the file. Idempotent."""
        if not self._file.closed:
            try:
                self._writer.flush()
            finally:
                self._file.close()


def open_recorder(path: str | os.PathLike[str], core: Core, *, kernel: str, protocol: str) -> FileRecorder:
    """Begin a recording of what a core and its kernel will say.

    A path that ends in ``.jsonl`` gets JSON Lines, any other the library's own format.

    Raises:
        UsageError: The file cannot be written.
    """
    translator = getattr(core, "translator", None)
    timebase: tuple[int, int] | None = getattr(translator, "timebase", None)
    interfaces: Mapping[int, str] = getattr(translator, "interfaces", {})
    layout = core.capabilities.layout
    info = RecordingInfo(
        protocol=protocol,
        kernel=kernel,
        timebase=timebase,
        layout=layout,
        started_ns=time.time_ns(),
        interfaces=dict(interfaces),
        tool=f"nstat_async {__version__}",
    )

    def nothing(_value: Any) -> None:
        """Known flows are of this moment: a replay has no use for them."""

    to_json: Callable[[Any], Any] = nothing
    if protocol == "sock_diag":
        from ..sockdiag import answer_to_json  # noqa: PLC0415

        to_json = answer_to_json
    try:
        file = open(path, "wb")  # noqa: SIM115, PTH123  # closed by the recorder
    except OSError as error:
        raise UsageError(f"record_to: {os.fspath(path)}: {error.strerror or error}") from error
    return FileRecorder(file, info, to_json, json_lines=os.fspath(path).endswith(".jsonl"))
