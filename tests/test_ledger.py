"""The ledger's short form: in each scenario every flow is accounted for, once and rightly; ``ledger.py`` has the long one."""

from __future__ import annotations

import pytest
from ledger import SCENARIOS, run


@pytest.mark.parametrize("scenario", ["poll, 8 KiB", "starved", "no memory", "announcements lost"])
@pytest.mark.parametrize("release", ["xnu-3248.60.10", "xnu-10063.141.1", "xnu-12377.121.6"])
def test_nothing_is_doubled_wrong_or_unannounced(release, scenario):
    line = run(release, SCENARIOS[scenario], 30)
    assert line.is_clean, line
    assert line.opened == 30
