"""The pictures of README and docs are made by a script, from the emulated kernel."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_a_picture_of_top_is_made_in_the_kernels_own_time_and_loads_nothing_from_elsewhere(monkeypatch):
    pytest.importorskip("textual")
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    spec = importlib.util.spec_from_file_location("make_pictures", ROOT / "docs" / "make_pictures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    svg = asyncio.run(module.picture(0, (80, 24)))
    assert svg.startswith("<svg")
    assert "There&#160;are&#160;no&#160;flows." in svg
    for text in (svg, *((ROOT / "docs" / "images" / name).read_text() for name in module.PICTURES)):
        assert "url(" not in text.replace("url(#", "")
