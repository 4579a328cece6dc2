"""How many examples Hypothesis makes up: a share in the quick suite, all and more where somebody asks for it."""

from __future__ import annotations

import os

THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") in {"thorough", "explore"}
SCALE = int(os.environ.get("NSTAT_PROPERTY_SCALE", "1"))
"""So many times as many, with the profiles `thorough` and `explore`."""


def examples(number: int) -> int:
    """Of a test that finds what it looks for with so many: a quarter of them in the quick suite; `.ci/run` makes all."""
    return number * SCALE if THOROUGH else max(8, number // 4)
