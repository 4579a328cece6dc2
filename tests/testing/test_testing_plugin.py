"""The pytest plugin serves a test suite of somebody else's."""

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PLUGIN = "nstat_async.testing._plugin"


def pytest_of_a_user(*arguments, cwd):
    """Run pytest in a project that has the package installed, or as if it had."""
    found = importlib.metadata.entry_points(group="pytest11")
    installed = any(point.value == PLUGIN for point in found)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    if not installed:
        command += ["-p", PLUGIN]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)


def test_the_example_suite_and_a_marked_test_pass_with_pytest_asyncio_and_anyios_plugin(tmp_path):
    marked = tmp_path / "test_marked.py"
    marked.write_text(
        "import pytest\n"
        "@pytest.mark.nstat_kernel('xnu-2422.115.4', privileged=True)\n"
        "def test_it(nstat_kernel):\n"
        "    assert nstat_kernel.name == 'xnu-2422.115.4'\n"
        "    assert nstat_kernel.privileged\n"
    )
    done = pytest_of_a_user("--strict-markers", ".", str(marked), cwd=ROOT / "examples" / "testsuite")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 passed" in done.stdout


def test_the_marker_is_documented(pytestconfig):
    from nstat_async.testing._plugin import pytest_configure

    pytest_configure(pytestconfig)
    assert any(line.startswith("nstat_kernel(") for line in pytestconfig.getini("markers"))


def test_the_plugin_brings_in_neither_the_emulated_kernel_nor_a_server():
    script = f"import {PLUGIN}, sys; print(*sorted(m for m in sys.modules if m.startswith('nstat_async.testing')))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.split() == ["nstat_async.testing", PLUGIN]


def test_the_entry_point_is_declared():
    text = (ROOT / "pyproject.toml").read_text()
    assert re.search(rf'\[project\.entry-points\.pytest11\]\s*nstat_async = "{re.escape(PLUGIN)}"', text)
