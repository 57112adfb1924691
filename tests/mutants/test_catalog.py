"""Every mutant of the catalog applies to the code of today."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

from catalog import MUTANTS, misfit

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "axpo"


def test_every_old_text_occurs_exactly_once() -> None:
    assert [problem for mutant in MUTANTS if (problem := misfit(mutant, PACKAGE))] == []


def test_every_mutated_file_is_valid_python() -> None:
    for mutant in MUTANTS:
        source = (PACKAGE / mutant.file).read_text(encoding="utf-8")
        compile(source.replace(mutant.old, mutant.new), f"{mutant.name}: {mutant.file}", "exec")


def test_the_nearest_tests_exist() -> None:
    for file, _, name in {test.partition("::") for mutant in MUTANTS for test in mutant.tests}:
        assert (ROOT / file).is_file(), file
        found = re.search(rf"(def|class) {name.partition('[')[0]}\b", (ROOT / file).read_text(encoding="utf-8"))
        assert found or not name, f"{file} has no {name}"


def test_names_are_unique_and_no_package_is_forgotten() -> None:
    assert Counter(mutant.name for mutant in MUTANTS).most_common(1)[0][1] == 1
    assert len(MUTANTS) >= 80
    assert {mutant.file.partition("/")[0] for mutant in MUTANTS} == {"algo", "models", "rewards", "rollout", "trainer"}


def test_a_text_that_is_gone_or_repeated_is_explained() -> None:
    gone = replace(MUTANTS[0], name="gone", old="no such text")
    repeated = replace(MUTANTS[0], name="repeated", old="def ")
    assert "gone: its text 'no such text' occurs 0 times in" in str(misfit(gone, PACKAGE))
    assert "write the line as it is today into tests/mutants/catalog.py" in str(misfit(repeated, PACKAGE))
