"""Numbers of sources that were skipped."""

from __future__ import annotations

import pytest

from nstat_async.ntstat._references import MAX_MISSING, References


@pytest.mark.parametrize("skipped", [3, MAX_MISSING + 3])
def test_what_was_skipped_is_lost_once(skipped):
    references = References()
    references.note(1)
    references.note(skipped + 2)
    assert references.take_lost() == skipped
    assert references.take_lost() == 0
