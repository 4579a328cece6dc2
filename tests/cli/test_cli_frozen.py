"""The command inside one file, and what a freezer has to know."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import zipapp
from pathlib import Path

import pytest

from nstat_async._pyinstaller import hook_directories

pytestmark = pytest.mark.slow
RECORDING = Path(__file__).parents[1] / "vectors" / "recordings" / "v1-linux.nstat"
PARTS = ("nstat_async", "anyio", "attr", "attrs", "idna", "sniffio", "typing_extensions", "exceptiongroup")


def place_of(name: str) -> Path | None:
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        return None
    origin = Path(found.origin)
    return origin.parent if origin.name == "__init__.py" else origin


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """The package and what it needs, as a zipapp."""
    tree = tmp_path_factory.mktemp("zipapp") / "tree"
    tree.mkdir()
    for place in filter(None, map(place_of, PARTS)):
        if place.is_dir():
            shutil.copytree(place, tree / place.name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(place, tree)
    target = tree.with_name("nstat-async.pyz")
    zipapp.create_archive(tree, target, main="nstat_async.__main__:run")
    return target


def run(archive: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-S", "-E", str(archive), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_a_zipapp_runs_the_command_with_its_statuses(archive):
    """Commands and backends are found inside it, and so are the files of the package."""
    played = run(archive, "replay", str(RECORDING), "--json")
    assert (played.returncode, played.stderr) == (0, "")
    assert '"event":"flow_added"' in played.stdout
    emulated = run(archive, "snapshot", "--backend", "emulated")
    assert (emulated.returncode, emulated.stderr) == (0, "")
    assert run(archive, "watch", "--nonsense").returncode == 2
    assert run(archive, "replay", "/nope").returncode == 1


@pytest.mark.linux
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="eBPF is Linux'")
def test_the_programs_are_in_a_zipapp(archive):
    script = "import sys; sys.path[:0] = [sys.argv[1]]; from nstat_async._io.bpfload import listing; print(len(listing().programs))"
    done = subprocess.run(
        [sys.executable, "-S", "-E", "-c", script, str(archive)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert int(done.stdout) > 0, done.stderr


def test_a_hook_tells_pyinstaller_what_is_imported_by_name():
    (directory,) = hook_directories()
    assert (Path(directory) / "hook-nstat_async.py").is_file()
