"""Kernel version strings and what follows from them."""

from __future__ import annotations

import ntstat_reader as reader
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples import examples
from nstat_async import Provider, UsageError
from nstat_async.ntstat import RELEASES, Kernel

NEWEST = RELEASES[-1]
MACOS_26 = next(row for row in RELEASES if row.first == (12377,))
_SELECTION = reader.vectors()["selection"]


def _wire(file: str) -> int:
    return int(reader.vectors()["files"][file]["wire"][1:])


@pytest.mark.parametrize("vector", _SELECTION["test_vectors"], ids=lambda v: v["input"][-40:])
def test_each_vector_of_the_selection_table_finds_its_layout(vector):
    if vector["expect"] is None:
        with pytest.raises(UsageError, match="has no ntstat"):
            Kernel.parse(vector["input"])
        return
    kernel = Kernel.parse(vector["input"])
    if kernel.version >= (12377,):
        row = max((row for row in RELEASES if row.first <= kernel.version), key=lambda row: row.first)
        assert kernel.layout is row.layout  # younger than the vectors, which end with 11417
        assert kernel.known == (row.known and row.first[0] == kernel.version[0])
    else:
        assert kernel.layout.number == _wire(vector["expect"])
        assert kernel.known


@pytest.mark.parametrize("file", reader.files())
def test_every_tag_finds_the_layout_that_was_compiled_from_it(file):
    for tag in reader.vectors()["files"][file]["tags"]:
        kernel = Kernel.parse(f"Darwin Kernel Version 99.0.0: today; root:{tag}~3/RELEASE_ARM64_T6000")
        assert kernel.layout.number == _wire(file)
        assert kernel.known
        assert kernel.name == tag


@pytest.mark.parametrize("row", _SELECTION["by_darwin_release_fallback"], ids=lambda r: ".".join(map(str, r["from"])))
def test_a_darwin_release_alone_finds_its_layout(row):
    release = ".".join(map(str, row["from"]))
    for text in (f"Darwin {release}", f"Darwin Kernel Version {release}: Mon Jan 1", f"darwin  {release}"):
        assert Kernel.parse(text).layout.number == _wire(row["file"])


@pytest.mark.parametrize(
    ("text", "number", "known"),
    [
        ("xnu-8019.41.5", 9, True),
        ("xnu-8019.42", 9, True),
        ("xnu-8019.60.99", 9, True),
        ("xnu-8019.61.4", 9, True),
        ("xnu-8019.61.5", 10, True),
        ("xnu-8019.61", 9, True),
        ("xnu-8019.80.24", 10, True),
        ("xnu-8020.0.1", 10, True),
        ("xnu-7195.50.7", 8, True),
        ("xnu-7195.50.7.100.1", 8, True),
        ("xnu-7195.0.0.0", 8, True),
        ("xnu-7194.9", 7, False),
        ("xnu-5000.1", 7, False),
        ("xnu-12376.9", 11, False),
        ("xnu-12377", MACOS_26.layout.number, MACOS_26.known),
        (f"xnu-{NEWEST.first[0] + 1}.1.2~44/RELEASE_ARM64_T8132", NEWEST.layout.number, False),
        ("xnu-999999999", NEWEST.layout.number, False),
        ("11417.121.6", 11, True),
        (" 11417.121.6\n", 11, True),
        ("Darwin 24.5.0", 11, True),
        ("Darwin 25.0.0", MACOS_26.layout.number, MACOS_26.known),
        ("Darwin 99.0.0", NEWEST.layout.number, False),
        ("Darwin Kernel Version 21.1.0: x; root:xnu-8019.61.5~1", 10, True),
        ("xnu-11417.121.6~2.3.4/RELEASE_ARM64", 11, True),
        ("xnu-4570.71.82.8~1", 7, True),
    ],
)
def test_between_newer_and_odd_versions_are_read_like_their_older_neighbour(text, number, known):
    kernel = Kernel.parse(text)
    assert (kernel.layout.number, kernel.known) == (number, known)
    assert kernel.text == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Linux 6.1",
        "xnu-",
        "xnu-abc",
        "xnu-1504.15.3",
        "xnu-1698.99",
        "Darwin",
        "Darwin 10.8.0",
        "Darwin x",
        "12",
        "\0",
    ],
)
def test_what_is_no_kernel_with_ntstat_is_a_usage_error_that_says_so(text):
    with pytest.raises(UsageError, match="kernel: "):
        Kernel.parse(text)


@settings(deadline=None, max_examples=examples(240))
@given(st.text(max_size=60))
def test_no_text_does_more_than_parse_or_be_refused(text):
    try:
        kernel = Kernel.parse(text)
    except UsageError:
        return
    assert 1 <= kernel.layout.number <= NEWEST.layout.number


@settings(deadline=None, max_examples=examples(240))
@given(st.lists(st.integers(0, 20_000), min_size=1, max_size=4))
def test_selection_agrees_with_the_independent_one(numbers):
    version = tuple(numbers)
    text = "xnu-" + ".".join(map(str, version))
    expected = reader.choose(version)
    if expected is None:
        with pytest.raises(UsageError):
            Kernel.parse(text)
    elif version < (12377,):
        assert Kernel.parse(text).layout.number == _wire(expected)


def test_facts_that_moved_between_releases():
    def of(text: str) -> Kernel:
        return Kernel.parse("xnu-" + text)

    assert [of(v).can_suppress for v in ("2782.50", "3247.1")] == [False, True]
    assert [of(v).suppress_switches_updates for v in ("3789.70", "4570.1")] == [False, True]
    assert [of(v).can_describe_all for v in ("2050.48", "2422.1")] == [False, True]
    assert [of(v).has_counts_at_goodbye for v in ("1699.32", "2050.7")] == [False, True]
    assert [of(v).explains_removal for v in ("8019.41.5", "8019.61.5")] == [False, True]
    assert [of(v).references_are_unique for v in ("3248.60", "3789.1")] == [False, True]
    assert [of(v).no_zero_bytes_bit for v in ("2782.1", "3248.60", "3789.1")] == [None, 0x100, 0x400000]
    assert of("3248.60").specific_user_bits is None
    assert of("8019.41.5").specific_user_bits == {"pid": 1 << 24, "epid": 1 << 25, "uuid": 1 << 26, "euuid": 1 << 27}
    assert of("8019.61.5").specific_user_bits == {"pid": 1 << 32, "epid": 1 << 33, "uuid": 1 << 34, "euuid": 1 << 35}
    assert [of(v).extension_bit(1) for v in ("7195.1", "8019.41.5", "8019.61.5")] == [None, 1 << 28, 1 << 41]
    assert of("8019.41.5").extension_bit(5) is None
    assert [of(v).has_details for v in ("11417.121.6", "12377.1.9")] == [False, True]


def test_provider_numbers_are_those_of_the_release():
    old, middle, new = Kernel.parse("xnu-2050.48.11"), Kernel.parse("xnu-3789.70.16"), Kernel.parse("xnu-11417.121.6")
    assert old.provider_numbers(Provider.UDP) == [3]
    assert middle.provider_numbers(Provider.UDP) == [4, 5]
    assert middle.provider_numbers(Provider.QUIC) == []
    assert new.provider_numbers(Provider.QUIC) == [8]
    assert new.provider_numbers(Provider.TCP) == [2, 3]
    assert Kernel.parse("xnu-2422.1").provider_numbers(Provider.INTERFACE) == [4]
    assert new.descriptor_name(99) is None
