"""docs/TESTING.md shows the tests of other languages as they are run, and names every fault that there is."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from fencepost_testing.faults.faults import FAULTS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "TESTING.md").read_text()
FILES = ("java/src/test/java/OrdersTest.java", "go/orders_test.go", "node/orders.test.js")
BEGIN, END = "ten lines: begin\n", "ten lines: end"


@pytest.mark.parametrize("name", FILES)
def test_the_tests_of_other_languages_stand_there_as_they_are_run(name: str) -> None:
    text = (ROOT / "tests" / "interop" / "ten_lines" / name).read_text()
    shown = text.partition(BEGIN)[2].partition(END)[0].rpartition("\n")[0]
    assert textwrap.dedent(shown).strip() in PAGE


@pytest.mark.parametrize("method", FAULTS.values())
def test_every_fault_is_described(method: str) -> None:
    assert f"`{method}(" in PAGE
