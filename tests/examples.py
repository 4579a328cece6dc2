"""How many examples Hypothesis makes up: a share in the quick suite, all and more where somebody asks for it."""

from __future__ import annotations

import os

THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") in {"thorough", "explore"}
SCALE = int(os.environ.get("NSTAT_PROPERTY_SCALE", "1"))
"""So many times as many, with the profiles `thorough` and `explore`."""


def examples(number: int, quick: int | None = None) -> int:
    """So many of them in `.ci/run`; in the quick suite as many as find what the test is for, mostly a quarter."""
    return number * SCALE if THOROUGH else quick or max(8, number // 4)
