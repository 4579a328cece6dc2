"""What holds for the whole suite."""

from __future__ import annotations

import os

from hypothesis import settings

# The same examples in every run: a test that fails has been broken by the change at hand.
# HYPOTHESIS_PROFILE=explore looks for new ones.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))
