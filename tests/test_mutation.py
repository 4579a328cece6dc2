"""The mutation runner of ``tests/mutation.py``: what it changes, and whom it reports as a survivor."""

from __future__ import annotations

import functools
import importlib
import time

import mutation
import mutation_run
import pytest

SOURCE = '''\
"""Words 1."""
LIMIT = 4


def grow(é, self):
    """More words."""
    if é < LIMIT and not self.full:
        self.count += 1
        self.note("x")
    return é
'''


def test_every_kind_of_change_is_found_once_and_nothing_else():
    found = {(mutant.line, mutant.old, mutant.new) for mutant in mutation.mutants("m.py", SOURCE)}
    condition = "é < LIMIT and not self.full"
    assert found == {
        (2, "4", "5"),
        (7, condition, f"(not ({condition}))"),
        (7, condition, "((é < LIMIT) or (not self.full))"),
        (7, "é < LIMIT", "(é) <= (LIMIT)"),
        (7, "not self.full", "bool(self.full)"),
        (8, "self.count += 1", "pass"),
        (8, "1", "2"),
        (9, 'self.note("x")', "pass"),
        (10, "return é", "return None"),
    }


@pytest.mark.parametrize(
    "source",
    [
        "def f(a: int = None) -> 'int | 3': ...\n",
        "raise ValueError(1)\n",
        "assert 1 < 2\n",
        "if TYPE_CHECKING:\n    a = 1\n",
        "x = f'{1 + 2}'\n",
    ],
)
def test_annotations_assertions_words_and_imports_for_types_are_left_alone(source):
    assert [m for m in mutation.mutants("m.py", source) if m.old != "..."] == []


def test_what_is_alike_to_whoever_asks_is_no_mutant():
    source = "def f(a, b):\n    zip(a, b, strict=True)\n    return False\n"
    assert [(m.old, m.new) for m in mutation.mutants("m.py", source)] == [
        ("zip(a, b, strict=True)", "pass"),
        ("False", "True"),
    ]


def test_a_mutant_changes_its_place_and_nothing_else():
    for mutant in mutation.mutants("m.py", SOURCE):
        text = mutation.changed(SOURCE, mutant)
        assert text != SOURCE
        back = mutation.Mutant("m.py", 0, mutant.begin, mutant.begin + len(mutant.new.encode()), mutant.new, mutant.old)
        assert mutation.changed(text, back) == SOURCE


def test_code_constants_and_defaults_are_changed_in_the_module_that_was_imported(tmp_path, monkeypatch):
    text = "LIMIT = 4\nTWICE = LIMIT * 2\n\ndef grow(by=1):\n    return by + LIMIT\n\nclass C:\n    size = 3\n"
    (tmp_path / "mutated.py").write_text(text)
    (tmp_path / "importer.py").write_text("from mutated import LIMIT\n")
    monkeypatch.syspath_prepend(tmp_path)
    importer, mutated = importlib.import_module("importer"), importlib.import_module("mutated")
    module = mutation_run.Patched(mutated.__file__, text)
    kinds = {(m.old, m.new): module.apply(m) for m in mutation.mutants("mutated.py", text)}
    assert {kind for (old, _), kind in kinds.items() if old in {"4", "2", "1", "LIMIT * 2"}} == {"constant"}
    assert (kinds["by + LIMIT", "((by) - (LIMIT))"], kinds["3", "4"]) == ("code", None)
    assert (importer.LIMIT, mutated.LIMIT, mutated.TWICE) == (5, 5, 15)
    assert mutated.grow.__defaults__ == (2,)
    assert mutated.grow() == 2 - 5


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_what_no_test_notices_is_reported_unless_it_is_explained(tmp_path, monkeypatch):
    package = tmp_path / "nstat_async"
    package.mkdir()
    source = "def sign(x):\n    if x < 0:\n        return -1\n    return 1\n"
    (package / "__init__.py").write_text(source)
    (tmp_path / "test_sign.py").write_text(
        "from nstat_async import sign\n\ndef test_sign():\n    assert (sign(-5), sign(5)) == (-1, 1)\n"
    )
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setattr(
        mutation, "explained", lambda: {"nstat_async/__init__.py: if x < 0: | 0 => 1": "no number is between"}
    )
    found = [m for m in mutation.chosen(tmp_path, ["nstat_async"]) if m.line == 2]
    lines = []
    results = mutation.hunt(tmp_path, found, lambda _path: ("test_sign.py",), jobs=1, show=lines.append)
    assert results == {"killed": 1, "survived": 1, "explained": 1}
    assert lines == ["nstat_async/__init__.py:2: if x < 0: | x < 0 => (x) <= (0)"]
    assert (package / "__init__.py").read_text() == source


@pytest.mark.slow
def test_a_mutant_that_waits_for_what_never_comes_is_given_up_long_before_its_time_is_over(monkeypatch):
    def work_and_wait():
        while time.process_time() < begin + 0.1:
            pass
        time.sleep(1e6)

    begin = time.process_time()
    with monkeypatch.context() as patched:
        patched.setattr(mutation_run, "IDLE", 1)
        assert mutation_run.in_child(work_and_wait, 1e6) is None
    assert mutation_run.in_child(lambda: "an answer", 1e6) == "an answer"


@pytest.mark.skipif(not (mutation.ROOT / "nstat_async").is_dir(), reason="not a checkout")
def test_what_is_explained_is_code_that_is_there():
    @functools.cache
    def code_of(path):
        return " ".join((mutation.ROOT / path).read_text(encoding="utf-8").split())

    def is_there(name):
        path, _, change = name.partition(": ")
        return " ".join(change.partition(" => ")[0].partition(" | ")[0].split()) in code_of(path)

    assert [name for name in mutation.explained() if not is_there(name)] == []
