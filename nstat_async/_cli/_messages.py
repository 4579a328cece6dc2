"""``messages FILE``: every protocol message of a recording, decoded."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from .._errors import NstatError, RecordingError, UsageError
from .._escape import dump
from .._values import from_json
from ..ntstat import Setup
from ..ntstat._kernels import Kernel
from ..ntstat._setup import ProvenStruct
from ..recording import Record, RecordingInfo, RecordKind, open_recording, steps
from ..recording._file import naming
from ._decode import MessageDecoder
from ._output import Output
from ._source import check_input

Decoder = Callable[[Record], "list[dict[str, Any]]"]


def run(arguments: argparse.Namespace) -> int:
    """Print the messages of the file.

    Raises:
        RecordingError: It is not a recording, or its protocol or kernel is unknown.
        OSError: It cannot be read.
    """
    output = Output()
    check_input(arguments.file)
    with naming(arguments.file), open_recording(arguments.file, kernel=arguments.kernel) as recording:
        decode = _decoder(recording.info, arguments.kernel)
        for batch in recording.records_batch(256):
            lines = []
            for record in batch:
                if record.kind is RecordKind.META:
                    decode = _decoder(record.value, arguments.kernel)
                else:
                    lines += [dump(line) for line in decode(record)]
            output.lines(lines)
    return 0


def _proven(info: RecordingInfo) -> tuple[ProvenStruct, ...]:
    """The structures that the recorder had proven when it began this file."""
    try:
        return from_json(Setup, from_json(steps.Run, info.run).setup).proven
    except NstatError:
        return ()


def _decoder(info: RecordingInfo, given: str | None) -> Decoder:
    if info.protocol in {None, "ntstat"}:  # None: its first record is damaged, or not there
        if info.kernel is None:
            raise RecordingError("the recording does not name its kernel: give it with --kernel, e.g. xnu-11417.121.6")
        try:
            return MessageDecoder(Kernel.parse(info.kernel), _proven(info)).lines
        except UsageError as error:
            if given is not None:
                raise
            raise RecordingError(f"the recording's {error}") from error
    if info.protocol == "sock_diag":
        from ._netlink import NetlinkDecoder  # noqa: PLC0415  # Linux recordings only

        return NetlinkDecoder().lines
    raise RecordingError(f"the recording's protocol {info.protocol!r} is unknown to this version")
