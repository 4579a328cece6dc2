"""The protocols whose cores can be made again from a recording: a row for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs

from .._contract import Core
from .._options import MonitorOptions
from .._values import Vocabulary

__all__ = ["Protocol", "protocol_of"]


@attrs.frozen
class Protocol:
    """One protocol."""

    name: str
    """As recordings name it."""
    setup: type
    """The class of `Core.setup`."""
    values: Vocabulary
    """Its purposes, look-up requests and answers."""
    make: Callable[[Any, MonitorOptions], Core]
    """A core from its setup and its options."""


def _ntstat() -> Protocol:
    from ..ntstat import RECORDED, Session, Setup  # noqa: PLC0415  # a machine needs one of them

    return Protocol("ntstat", Setup, RECORDED, Session.from_setup)


def _sock_diag() -> Protocol:
    from ..sockdiag import RECORDED, Session, Setup  # noqa: PLC0415  # as above

    return Protocol("sock_diag", Setup, RECORDED, Session.from_setup)


_ROWS: dict[str, Callable[[], Protocol]] = {"ntstat": _ntstat, "sock_diag": _sock_diag}


def protocol_of(name: str | None) -> Protocol | None:
    """The row of a protocol; `None` for one that this version does not know."""
    row = _ROWS.get(name or "ntstat")
    return None if row is None else row()
