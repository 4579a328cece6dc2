"""Scenes of `top` from the emulated kernel in its own time: the same letters on every machine.

``python tests/cli/top_scenes.py`` writes the golden files anew: look at each before you keep it.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

if __name__ == "__main__":  # pytest has it on its path
    sys.path.insert(0, str(Path(__file__).parent.parent))

from virtual import VirtualMonitor

from nstat_async import Capabilities, Visibility
from nstat_async._cli._top._app import TopApp
from nstat_async._cli._top._model import RowLine, TopModel
from nstat_async._cli._views import View
from nstat_async.testing import EmulatedKernel, Workload

GOLDEN = Path(__file__).parent / "golden"
SIZES = ((40, 10), (80, 24), (120, 40), (200, 60))
FLOWS = (0, 30, 3000)
SECONDS = 12


def model_of(flows: int, seconds: int = SECONDS) -> TopModel:
    """What `top` knows after so many seconds of a machine with about as many flows."""
    kernel = EmulatedKernel(seed=7)
    if flows:
        Workload(kernel, size=flows, rate=flows / 20, mean_life=20.0, seed=7).start()
    model = TopModel(View(users=False))
    monitor = VirtualMonitor(kernel, receive_buffer=1 << 24, sink=model.feed)
    for _ in range(seconds):
        monitor.run(1.0)
        model.look()
    return model


class Still(TopApp):
    """`top` with a model that nothing feeds."""

    def __init__(self, model: TopModel) -> None:
        super().__init__(EmulatedKernel().backend(), {}, interval=1e6)
        self.model = model
        self.state.capabilities = Capabilities(
            backend="emulated", kernel="xnu-11417.121.6", flows=Visibility.ALL, processes=Visibility.ALL
        )

    async def _follow(self) -> None:
        pass


async def opened(app: TopApp, pilot) -> None:
    """Expand the first row that has several flows."""
    app.show_model()
    await pilot.pause()
    for line in [line for line in app.model.lines if isinstance(line, RowLine) and line.row.open_flows > 1][:1]:
        app.model.toggle(line.row.serial)
    app.show_model()
    await pilot.pause()


def letters(app: TopApp) -> str:
    """The screen as text, without the list of keys and the scroll bar, which are Textual's own, and drawn when it likes."""
    strips = app.screen._compositor.render_strips()
    width = app.size.width - app.view.show_vertical_scrollbar
    lines = ["".join(segment.text for segment in strip.crop(0, width)).rstrip() for strip in strips]
    return "\n".join(lines[:-1] if len(lines) >= 12 else lines).rstrip() + "\n"


async def capture(model: TopModel, size: tuple[int, int]) -> str:
    """What a terminal of this size shows of a model."""
    app = Still(model)
    async with app.run_test(size=size) as pilot:
        await opened(app, pilot)
        text = letters(app)
    model.expanded.clear()
    model.rearrange()
    return text


def golden(flows: int, size: tuple[int, int]) -> Path:
    return GOLDEN / f"top-{size[0]}x{size[1]}-{flows}.txt"


if __name__ == "__main__":
    for number in FLOWS:
        scene = model_of(number)
        for each in SIZES:
            golden(number, each).write_text(asyncio.run(capture(scene, each)), encoding="utf-8")
            print(golden(number, each))
