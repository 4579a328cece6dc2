"""Writes ``docs/modules.md`` from the docstrings of all modules: ``python docs/make_modules.py``.

The floors are those of ``tests/test_layers.py``.
"""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = Path(__file__).with_name("modules.md")
_HEAD = """\
# Modules

Every module of the package with the first sentence of its docstring, by floor (see [Architecture](architecture.md#floors)).
This page is made from the docstrings by `python docs/make_modules.py`.
"""
_FLOORS = (
    "Values, events, errors",
    "Protocols and forms as data and codecs",
    "Cores: logic without I/O and without a clock",
    "I/O",
    "Backends and the monitor",
    "What is made of a monitor",
    "The command line",
)


def _layers() -> Any:
    spec = importlib.util.spec_from_file_location("test_layers", ROOT / "tests" / "test_layers.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _first_sentence(path: Path) -> str:
    head, _, _ = path.read_text(encoding="utf-8").partition("\nfrom __future__ ")  # to parse it all takes its time
    text = (ast.get_docstring(ast.parse(head)) or "").partition("\n\n")[0]
    return " ".join(text.split()).replace("|", "\\|").replace("``", "`")


def page() -> str:
    """The whole page."""
    layers = _layers()
    parts = [_HEAD]
    for number, title in enumerate(_FLOORS):
        parts.append(f"## Floor {number}: {title}\n\n| floor | module | what |\n|---|---|---|")
        for module, path in sorted(layers.MODULES.items(), key=lambda item: ("." in item[0], item[0])):
            if layers.floor(module) == number and not path.name.startswith("__"):
                name = path.relative_to(layers.ROOT).as_posix()
                parts.append(f"| {number} | `{name if '/' in name else './' + name}` | {_first_sentence(path)} |")
        parts[-1] += "\n"
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
