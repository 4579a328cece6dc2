"""Users' code type-checks: ``tests/typing`` passes mypy's strict mode."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).parent


@pytest.mark.slow
def test_user_code_passes_strict_mypy_and_its_mistakes_are_found(tmp_path):
    pytest.importorskip("mypy")
    command = [
        sys.executable, "-m", "mypy", "--strict", "--warn-unreachable", "--python-version=3.10", "--no-error-summary",
        f"--cache-dir={HERE.parent / '.mypy_cache'}", f"--config-file={tmp_path / 'none'}", "tests/typing",
    ]  # fmt: skip
    (tmp_path / "none").write_text("[mypy]\n")
    done = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True)
    mine = [line for line in done.stdout.splitlines() if line.startswith("tests")]
    assert mine == [], "\n".join(mine)
    assert "error: Cannot find" not in done.stdout, done.stdout
    assert done.stderr == ""
