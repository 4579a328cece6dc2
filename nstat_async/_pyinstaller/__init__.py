"""For PyInstaller: where the hook is that says what belongs to this package, beside what is imported by name."""

from __future__ import annotations

from pathlib import Path


def hook_directories() -> list[str]:
    """The entry point ``pyinstaller40``."""
    return [str(Path(__file__).parent)]
