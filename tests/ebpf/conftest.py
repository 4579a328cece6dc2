"""Fixtures of the tests on the living kernel. What they need is imported by them: the other tests here run on any system."""

from __future__ import annotations

import pytest


@pytest.fixture
def namespace():
    from ebpf_living import living

    with living():
        yield


@pytest.fixture
def granted():
    """For programs that go to a namespace themselves."""
    from ebpf_living import skip_where_refused

    skip_where_refused()


@pytest.fixture(scope="session")
def traffic(tmp_path_factory):
    from ebpf_living import compiled

    return compiled("traffic", tmp_path_factory.mktemp("traffic"))
