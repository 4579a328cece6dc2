"""The setup of the Linux core, as a value that a recording can hold."""

from __future__ import annotations

from typing import ClassVar

import attrs

from .._model import Visibility
from .._options import Ebpf

MAX_NAMESPACES = 256
"""Most network namespaces that are watched at once from inside, and as many from outside."""


@attrs.frozen
class NetworkNamespace:
    """A network namespace: which one it is, and what people call it."""

    label: str | None = None
    """As `Flow.namespace` shows it; `None` for this namespace, the monitor's own."""
    device: int | None = attrs.field(default=None, kw_only=True)
    """Device of its nsfs file; with `inode` it is the namespace's identity. `None` when unknown."""
    inode: int | None = attrs.field(default=None, kw_only=True)
    """Inode of its nsfs file."""


def needed_to_look(capabilities: str) -> str:
    """What is needed to look at all processes (``ptrace(2)``, PTRACE_MODE_READ_FSCREDS), for a person."""
    return f"that needs {capabilities}, and no security module (SELinux, Landlock) that forbids it"


UNNAMED = f"processes cannot be named: {needed_to_look('CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH')}"
"""The remark on processes that may not be looked at; their number comes before it."""


@attrs.frozen(kw_only=True)
class Setup:
    """What a `Session` is made of, besides the options."""

    protocol: ClassVar[str] = "sock_diag"
    kernel: str | None = None
    """The kernel's release."""
    namespaces: tuple[NetworkNamespace, ...] = (NetworkNamespace(),)
    """The network namespaces, in the order of their numbers in `ChannelPurpose`."""
    processes: Visibility = Visibility.UNKNOWN
    """Whose processes can be named."""
    limit: str | None = None
    """Why not everybody's, for a person."""
    refused: Visibility = Visibility.SOME
    """Whose processes can be named if a search meets one that may not be looked at."""
    ebpf: Ebpf = Ebpf.OFF
    """Whether eBPF programs are asked for."""
    all_namespaces: bool = False
    """Whether other network namespaces are looked for."""
    closed: bool = False
    """Whether none of them may be entered."""
    cgroups: bool = False
    """Whether cgroups are looked up. Older recordings do not say so, and have no answers."""
