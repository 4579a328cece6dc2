"""What a Linux core is made of, as a value that a recording can hold."""

from __future__ import annotations

from typing import ClassVar

import attrs

from .._contract import LookupFailed
from .._model import Visibility
from .._values import Vocabulary
from ._links import LinkKindsAnswer, LinkKindsRequest
from ._owners import OwnersAnswer, OwnersRequest
from ._purpose import ChannelPurpose, NetworkNamespace


@attrs.frozen(kw_only=True)
class Setup:
    """The facts beside the options from which a `Session` is made."""

    protocol: ClassVar[str] = "sock_diag"
    kernel: str | None = None
    """The kernel's release."""
    namespaces: tuple[NetworkNamespace, ...] = (NetworkNamespace(),)
    """The network namespaces, in the order of their numbers in `ChannelPurpose`."""
    processes: Visibility = Visibility.UNKNOWN
    """Whose processes can be named."""


RECORDED = Vocabulary(ChannelPurpose, OwnersRequest, OwnersAnswer, LinkKindsRequest, LinkKindsAnswer, LookupFailed)
"""The purposes and look-ups of this protocol, and their answers."""
