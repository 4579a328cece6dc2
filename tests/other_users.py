"""Another user, without any privilege, who starts this Python."""

from __future__ import annotations

import re

import pytest

AS_ANOTHER = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
_CLOSED = re.compile(
    r"setpriv: failed to execute|error while loading shared libraries|No module named|PermissionError: .*site-packages"
)
"""What such a process says if this Python, or the project, lies in somebody's closed home."""


def skip_if_closed(error: str) -> None:
    """Skip the test if this says that other users may not start this Python."""
    if _CLOSED.search(error):
        pytest.skip("this Python, or the project, is closed to other users")
