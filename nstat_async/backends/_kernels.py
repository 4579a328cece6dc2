"""The option ``kernel`` of backends: the version of a Darwin kernel that cannot be asked."""

from __future__ import annotations

from typing import Any

from .._errors import UsageError


def check_kernel(_instance: object, attribute: Any, value: Any) -> None:
    """A validator for a kernel's version string; it takes `None` if that is the default."""
    if value is None and attribute.default is None:
        return
    if not isinstance(value, str):
        raise UsageError(f"kernel: {value!r} is not a version of a kernel such as 'xnu-11417.121.6'")
    from ..ntstat import Kernel  # noqa: PLC0415  # with the Darwin protocol, which others do without

    Kernel.parse(value)
