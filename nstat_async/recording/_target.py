"""The target of a recording: one file, or parts of a limited size or age."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import BinaryIO, Union

import attrs

from nstat_async._checks import LONGEST_SECONDS, check_flag, check_path, positive
from nstat_async._errors import UsageError

Target = Union[str, os.PathLike[str], BinaryIO]
_FIRST_LINE = 4 << 20
_TOOL = "nstat_async "


@attrs.frozen
class Recording:
    """A recording to write: the value of a monitor's ``record_to`` if a path is not enough.

    With a limit it is written in parts, ``day.000001.nstat``, ``day.000002.nstat``, … for the
    path ``day.nstat``. Each part can be read on its own, and all of them in order as one recording.
    Numbers continue after those of existing parts.

    Raises:
        UsageError: A limit is not a positive number, or limits are given for a file that is open already.
    """

    target: Target
    """A path, ``"-"`` for standard output, or an open binary file (which the caller closes).
    JSON Lines if it is a path that ends in ``.jsonl``."""
    max_bytes: int | None = attrs.field(default=None, kw_only=True, validator=positive(optional=True, whole=True))
    """Begin a new part when the present one has this many bytes."""
    max_seconds: float | None = attrs.field(
        default=None, kw_only=True, validator=positive(optional=True, most=LONGEST_SECONDS)
    )
    """Begin a new part when the present one is this old."""
    keep: int | None = attrs.field(default=None, kw_only=True, validator=positive(optional=True, whole=True))
    """How many parts to keep; older ones are deleted. `None`: all."""
    overwrite: bool = attrs.field(default=False, kw_only=True, validator=check_flag)
    """True: replace any existing file. False: only a recording of this library."""

    def __attrs_post_init__(self) -> None:
        check_path("record_to", self.target, "wb")
        if self.path is None and (self.rotates or self.keep):
            raise UsageError("record_to: parts need a path")
        if self.keep is not None and not self.rotates:
            raise UsageError("keep: there are no parts without max_bytes or max_seconds")

    @property
    def path(self) -> Path | None:
        """The path; `None` for standard output and for an open file."""
        if isinstance(self.target, (str, os.PathLike)) and self.target != "-":
            return Path(self.target)
        return None

    @property
    def rotates(self) -> bool:
        """True if it is written in parts."""
        return self.max_bytes is not None or self.max_seconds is not None

    @property
    def json_lines(self) -> bool:
        """True if it is written as JSON Lines."""
        return self.path is not None and self.path.suffix == ".jsonl"

    def part(self, number: int) -> Path:
        """The path of a part."""
        assert self.path is not None  # the constructor checked it
        return self.path.with_name(f"{self.path.stem}.{number:06}{self.path.suffix}")

    def parts(self) -> list[tuple[int, Path]]:
        """The existing parts with their numbers, in order."""
        assert self.path is not None  # as above
        name = re.compile(rf"{re.escape(self.path.stem)}\.(\d{{6,}}){re.escape(self.path.suffix)}")
        found = ((name.fullmatch(entry.name), entry) for entry in self.path.parent.iterdir())
        return sorted((int(match.group(1)), entry) for match, entry in found if match is not None)


def is_ours(file: BinaryIO) -> bool:
    """True if a file is empty, or a recording that this library wrote.

    Raises:
        OSError: It cannot be read.
    """
    import json  # noqa: PLC0415  # this module is always imported, and few programs record

    from ._native import MAGIC  # noqa: PLC0415  # as above

    beginning = file.read(len(MAGIC))
    if not beginning or beginning == MAGIC:
        return True
    if not beginning.startswith(b"{"):
        return False
    try:
        facts = json.loads(beginning + file.readline(_FIRST_LINE))
    except (ValueError, RecursionError):
        return False
    tool = facts.get("tool") if isinstance(facts, dict) else None
    return isinstance(tool, str) and tool.startswith(_TOOL)
