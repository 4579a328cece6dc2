"""Fuzz one target under atheris: ``python fuzz/run.py TARGET [libFuzzer options] [corpus directories]``."""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parent.parent))

with atheris.instrument_imports(include=["nstat_async"]):
    import targets


def main() -> None:
    """Run until something breaks, or as long as the options say."""
    if len(sys.argv) < 2 or sys.argv[1] not in targets.TARGETS:
        names = ", ".join(targets.TARGETS)
        sys.exit(f"usage: python fuzz/run.py TARGET [libFuzzer options] [corpus directories]\nTARGET is one of {names}")
    target = targets.TARGETS[sys.argv.pop(1)]
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
