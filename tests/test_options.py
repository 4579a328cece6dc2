"""Options are checked once, by name."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from nstat_async import DEFAULT_PROVIDERS, Discovery, Monitor, MonitorOptions, Overflow, Provider, UsageError
from nstat_async.testing import EmulatedKernel


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"providers": "pigeon"}, r"providers: 'pigeon' is not one of tcp, udp, quic"),
        ({"providers": 5}, "providers: 5 is not one of tcp"),
        ({"record_to": 5}, "record_to: 5 is neither a path nor a file"),
        ({"backend": 5}, "backend: 5 is neither a backend nor one of auto, kctl"),
        (
            {"backend": EmulatedKernel()},
            r"backend: <EmulatedKernel .* is none itself; give what its method backend\(\) makes",
        ),
        (
            {"backend": Path("a.nstat")},
            r"backend: (Posix|Windows)Path\('a.nstat'\) is a path; to play a recording: backends.Replay",
        ),
        ({"providers": []}, "providers: at least one is needed"),
        ({"interval": 0}, "interval: 0 is not a positive number"),
        ({"pulse": 1e-9}, r"pulse: 1e-09 is not a positive number of at least 0\.001 and at most"),
        ({"interval": -1.5}, r"interval: -1\.5 is not"),
        ({"interval": "1"}, "interval: '1' is not"),
        ({"interval": True}, "interval: True is not"),
        ({"interval": float("nan")}, "interval: nan is not"),
        ({"max_pending": 0}, "max_pending: 0 is not"),
        ({"max_pending": None}, "max_pending: None is not"),
        ({"receive_buffer": -5}, "receive_buffer: -5 is not"),
        ({"discovery": "smell"}, "discovery: 'smell' is not one of 'poll', 'announce'"),
        ({"overflow": "panic"}, "overflow: 'panic' is not one of 'coalesce', 'block', 'all'"),
        ({"flow_filter": 7}, "flow_filter: 7 is neither"),
        ({"flow_filter": "port=443"}, "flow_filter: 'port=443' is neither .*filters.parse makes a filter of text"),
        ({"pulse": "off"}, "pulse: 'off' is not .*; None means none"),
        ({"interval": 10**400}, "interval: what was given is not a positive number of at most"),
        ({"interval": float("inf")}, "interval: inf is not"),
        ({"receive_buffer": 1.5}, r"receive_buffer: 1\.5 is not a positive whole number"),
        ({"receive_buffer": 10**30}, "receive_buffer: what was given is not"),
        ({"max_pending": 1.5}, r"max_pending: 1\.5 is not a positive whole number"),
        ({"record_to": "a\0b"}, "record_to: .* is not a path"),
        ({"record_to": ""}, "record_to: '' is not a path"),
        ({"record_to": io.StringIO()}, "record_to: .* is a text file; open it with mode 'wb'"),
        ({"every_update": "no"}, "every_update: 'no' is neither True nor False"),
        ({"extras": "no"}, "extras: 'no' is neither"),
        ({"strict": "x"}, "strict: 'x' is neither"),
    ],
)
def test_an_option_that_cannot_work_is_named_with_its_value(arguments, text):
    with pytest.raises(UsageError, match=text):
        Monitor(**arguments)


def test_options_take_words_and_members_alike():
    options = MonitorOptions(providers=("tcp", Provider.UDP), discovery="announce", overflow="all", interval=None)
    assert options.providers == {Provider.TCP, Provider.UDP}
    assert options.discovery is Discovery.ANNOUNCE
    assert options.overflow is Overflow.ALL
    assert options == MonitorOptions(
        providers=["udp", "tcp"], discovery=Discovery.ANNOUNCE, overflow=Overflow.ALL, interval=None
    )
    assert MonitorOptions(providers="udp").providers == {Provider.UDP}
    assert MonitorOptions().providers == DEFAULT_PROVIDERS == {Provider.TCP, Provider.UDP, Provider.QUIC}
    assert MonitorOptions().overflow is None
    with pytest.raises(AttributeError):
        MonitorOptions().interval = 2
