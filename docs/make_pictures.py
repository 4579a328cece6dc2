"""Makes the pictures of README and docs from the emulated kernel: ``python docs/make_pictures.py``.

Everything happens in the emulated kernel's own time, so the pictures are the same each time, and change only where `top` does.
"""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "cli")]

import top_scenes  # noqa: E402  # found by the path above

FONTS = 'ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace'
PICTURES = {"top.svg": (30, (100, 24))}
"""By name: how many flows, columns and lines."""


async def picture(flows: int, size: tuple[int, int]) -> str:
    """A screen of `top` as SVG."""
    app = top_scenes.Still(top_scenes.model_of(flows, 60))
    async with app.run_test(size=size) as pilot:
        await top_scenes.opened(app, pilot)
        svg = app.export_screenshot(title="nstat-async top")
    svg = re.sub(r"terminal-\d+", "terminal", svg)  # a number by chance
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)  # nothing is fetched from elsewhere
    return svg.replace("Fira Code, monospace", FONTS)


def main() -> None:
    """Write them all."""
    for name, (flows, size) in PICTURES.items():
        (ROOT / "docs" / "images" / name).write_text(asyncio.run(picture(flows, size)), encoding="utf-8")


if __name__ == "__main__":
    main()
