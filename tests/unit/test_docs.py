"""The pages of docs/ say what the code says, where that can be compared."""

from __future__ import annotations

import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fencepost_proto.kafka.apis import APIS
from tests.simulation.controller_stories import MUTANTS as CONTROLLER_MUTANTS
from tests.simulation.group_mutants import GROUP_MUTANTS
from tests.simulation.mutants import MUTANTS

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
SOURCES = [
    str(path.relative_to(ROOT))
    for folder in ("proto", "node", "controller", "client", "scripts", "tests", "docs")
    for path in (ROOT / folder).rglob("*.*")
]
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)")
LINKED_TEST = re.compile(r"\[`(test_\w+)`\]\(([^)]+)\)")
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def text_of(page: Path) -> str:
    return FENCE.sub("", page.read_text())


def page_with(heading: str) -> str:
    """The text below a heading, up to the next one of its level or above."""
    for page in PAGES:
        found = re.search(rf"^(#+) {re.escape(heading)}$", page.read_text(), re.MULTILINE)
        if found:
            rest = page.read_text()[found.end() :]
            return re.split(rf"^#{{1,{len(found[1])}}} ", rest, maxsplit=1, flags=re.MULTILINE)[0]
    raise AssertionError(f"no page has the heading {heading!r}")


def test_the_configuration_page_is_what_the_dataclasses_say() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "generators" / "configuration.py"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert (ROOT / "docs" / "CONFIGURATION.md").read_text() == done.stdout, "run ./scripts/docs"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file(page: Path) -> None:
    links = [link for link in LINK.findall(text_of(page)) if "://" not in link]
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_source_file_that_a_page_names_is_there(page: Path) -> None:
    named = set(re.findall(r"`([a-z\d_/…-]+\.(?:py|txt|proto))`", text_of(page))) - {"orders.py"}
    missing = [name for name in sorted(named) if not any(is_named(path, name) for path in SOURCES)]
    assert not missing


def is_named(path: str, name: str) -> bool:
    """`controller/…/decisions/isr.py` names a path with these parts, in this order, up to its end."""
    first, *rest = name.split("…")
    if not rest:
        return path == name or path.endswith(f"/{name}")
    return path.startswith(first) and path.endswith(rest[-1])


def test_every_name_of_the_reference_is_there() -> None:
    names = [name for page in PAGES for name in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)]
    assert names
    for name in names:
        pkgutil.resolve_name(name)


def test_every_failure_of_the_gauntlet_names_a_test_that_is_there() -> None:
    named = LINKED_TEST.findall(page_with("The gauntlet"))
    assert len(named) > 30
    missing = [name for name, file in named if f"def {name}(" not in (ROOT / "docs" / file).read_text()]
    assert not missing


def test_every_file_of_the_gauntlet_is_named() -> None:
    text = page_with("The gauntlet")
    files = [file.name for file in (ROOT / "tests" / "gauntlet").glob("test_*.py")]
    assert files
    assert [name for name in files if name not in text] == []


def test_the_table_of_deliberate_faults_is_that_of_the_simulator() -> None:
    rows = re.findall(r"^\| ([a-z-]+) \| ([\w ,]+) \| \S+ \| (\d+) \|$", page_with("That it can fail"), re.MULTILINE)
    assert [(name, int(seeds)) for name, _, seeds in rows] == [(mutant.name, mutant.seeds) for mutant in MUTANTS]
    promises = {mutant.name: mutant.promises for mutant in MUTANTS}
    assert [name for name, promise, _ in rows if promise not in promises[name]] == []


def test_every_promise_names_deliberate_faults_that_break_it() -> None:
    rows = re.findall(r"^\| (G\d+) .* \| ([\w, -]+) \|$", page_with("From promise to test"), re.MULTILINE)
    numbers = [int(promise[1:]) for promise, _ in rows]
    assert numbers[:11] == list(range(1, 12))
    assert numbers == sorted(set(numbers))
    promises = {mutant.name: mutant.promises for mutant in MUTANTS}
    promises |= {mutant.name: mutant.promises for mutant in GROUP_MUTANTS}
    promises |= {mutant.name: mutant.promises for mutant in CONTROLLER_MUTANTS}
    for promise, names in rows:
        assert [name for name in names.split(", ") if promise not in promises[name]] == []


def test_every_api_of_kafka_is_in_its_page_with_its_versions() -> None:
    page = (ROOT / "docs" / "KAFKA.md").read_text()
    for api in APIS.values():
        assert f"| {api.name} | {api.key} | {api.min_version} to {api.max_version} |" in page
