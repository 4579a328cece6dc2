from __future__ import annotations

from nstat_async import InterfaceKind
from nstat_async.ntstat import InterfaceProperty, Kernel
from nstat_async.ntstat._translate import Translator

TRANSLATOR = Translator(Kernel.parse("xnu-11417.121.6"), interfaces={4: "en0"})


def test_where_only_the_kind_is_known_the_index_is_not_made_up():
    interface = TRANSLATOR.interface(None, int(InterfaceProperty.WIFI))
    assert (interface.index, interface.name, interface.kind) == (None, None, InterfaceKind.WIFI)


def test_before_the_first_packet_there_is_no_interface():
    assert TRANSLATOR.interface(0, int(InterfaceProperty.UNKNOWN_TYPE)) is None


def test_an_index_brings_its_name():
    assert TRANSLATOR.interface(4, int(InterfaceProperty.WIFI)).name == "en0"
