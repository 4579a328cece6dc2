"""Play random choices to the C code, built with AddressSanitizer and UndefinedBehaviorSanitizer.

``python fuzz/asan.py [--inputs N] [--seed N]``. Builds a copy of the library in a temporary directory, and runs itself
there with the sanitizer's runtime loaded first. Stops at the first input that breaks a promise, and prints it.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
TARGETS = ("reports", "dumps", "binary")
_INSIDE = "NSTAT_FUZZ_SANITIZED"


def build(directory: Path) -> dict[str, str]:
    """Copy the tree, compile its C code with the sanitizers; the environment to run it in."""
    for name in ("nstat_async", "fuzz", "tests"):
        shutil.copytree(ROOT / name, directory / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    compiler = os.environ.get("CC", "cc")
    library = directory / "nstat_async" / f"_speedups{sysconfig.get_config_var('EXT_SUFFIX')}"
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]
    include = f"-I{sysconfig.get_path('include')}"
    source = str(directory / "nstat_async" / "_speedups.c")
    command = [compiler, "-shared", "-fPIC", "-g", "-O1", "-Wall", *sanitizers, include, source, "-o", str(library)]
    subprocess.run(command, check=True)  # noqa: S603  # the user's own compiler
    names = ("libasan.so", "libubsan.so")
    asked = [[compiler, f"-print-file-name={name}"] for name in names]
    runtimes = [subprocess.run(a, capture_output=True, text=True, check=True).stdout.strip() for a in asked]  # noqa: S603
    return {
        **os.environ,
        _INSIDE: "1",
        "LD_PRELOAD": ":".join(runtimes),
        "ASAN_OPTIONS": "detect_leaks=0",  # the interpreter keeps what it wants
        "PYTHONMALLOC": "malloc",
        "PYTHONPATH": str(directory),
    }


def play(inputs: int, seed: int) -> None:
    """Inside: random choices, until something breaks."""
    import targets  # noqa: PLC0415  # of the copy

    from nstat_async._compiled import SPEEDUPS, speedups  # noqa: PLC0415  # as above

    if speedups is None:
        sys.exit(f"the C code is {SPEEDUPS}")
    dice = random.Random(seed)  # noqa: S311  # to be repeated
    played = 0
    while played < inputs:
        name, data = dice.choice(TARGETS), dice.randbytes(dice.randrange(2_000))
        try:
            played += targets.TARGETS[name](data) or 1
        except BaseException:
            print(f"{name}: {data.hex()}")
            raise
    print(f"{played:,} inputs, nothing found")


def main() -> None:
    """Build and run, or run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    if os.environ.get(_INSIDE):
        play(arguments.inputs, arguments.seed)
        return
    with tempfile.TemporaryDirectory() as directory:
        environment = build(Path(directory))
        command = [sys.executable, str(Path(directory, "fuzz", "asan.py")), *sys.argv[1:]]
        sys.exit(subprocess.run(command, env=environment, check=False).returncode)  # noqa: S603


if __name__ == "__main__":
    main()
