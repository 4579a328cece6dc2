"""Every program in the how-tos of this part runs, and prints what stands there."""

from __future__ import annotations

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PAGES = ("aggregate", "history", "prometheus", "opentelemetry", "server")
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.DOTALL | re.MULTILINE)


def programs():
    for page in PAGES:
        text = (ROOT / "docs" / "how-to" / f"{page}.md").read_text()
        for number, match in enumerate(BLOCK.finditer(text), 1):
            yield pytest.param(match[1], match[2], id=f"{page}-{number}")


@pytest.mark.parametrize(("program", "output"), list(programs()))
def test_a_program_of_the_documentation_runs(program, output, tmp_path, monkeypatch, capsys):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    exec(compile(program, "the page", "exec"), {"__name__": "__main__"})
    done = capsys.readouterr()
    assert done.err == ""
    if output is not None:
        assert done.out == output
