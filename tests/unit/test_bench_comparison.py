"""`bench --compare`: the other commit's own code runs, in turns with this one's, and figures are compared pair by pair."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from fencepost_cli.comparison import Checkout, Compared, Figures, compare, compared, figures_of, measure, unpacked
from fencepost_testing.failures import CommandFailed

SAYS = """
import json
print("measuring")
print(json.dumps({"acks": NUMBER, "by_producers": {"1": 5}}))
"""


def checkout_of(folder: Path, number: int) -> Checkout:
    package = folder / "scripts" / "fencepost_cli"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(SAYS.replace("NUMBER", str(number)))
    return Checkout(folder, f"commit-{number}")


def git(folder: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


def test_each_checkout_runs_its_own_code(tmp_path: Path) -> None:
    figures = [measure(checkout_of(tmp_path / str(number), number), tmp_path) for number in (1, 2)]
    assert figures == [{"acks": 1, "by_producers.1": 5}, {"acks": 2, "by_producers.1": 5}]


def test_a_benchmark_that_prints_no_figures_is_an_error_that_names_its_commit(tmp_path: Path) -> None:
    broken = checkout_of(tmp_path / "broken", 3)
    (broken.root / "scripts" / "fencepost_cli" / "__main__.py").write_text("print('no figures')")
    with pytest.raises(CommandFailed, match="commit-3 ended with 'no figures'"):
        measure(broken, tmp_path)
    (broken.root / "scripts" / "fencepost_cli" / "__main__.py").write_text(
        "raise SystemExit('it is broken')"
    )  # not as long as before: its .pyc would pass for current
    with pytest.raises(CommandFailed, match="benchmark of commit-3 failed"):
        measure(broken, tmp_path)


def test_another_commit_is_unpacked_as_it_was(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    for folder in ("proto", "node", "controller", "client", "scripts"):
        (repository / folder).mkdir(parents=True)
        (repository / folder / "file").write_text("before")
    git(repository, "init")
    git(repository, "add", ".")
    git(repository, "commit", "-m", "before")
    (repository / "node" / "file").write_text("after")
    git(repository, "commit", "-a", "-m", "after")
    before = unpacked(repository, "HEAD~1", tmp_path / "other")
    assert (before.root / "node" / "file").read_text() == "before"
    with pytest.raises(CommandFailed, match="no-such-commit"):
        unpacked(repository, "no-such-commit", tmp_path / "third")


def test_pairs_are_run_in_turns_and_the_order_changes() -> None:
    other, this = Checkout(Path("/other"), "other"), Checkout(Path("/this"), "this")
    order: list[str] = []

    def run(checkout: Checkout) -> Figures:
        order.append(checkout.name)
        return {"acks": 10.0 * len(order)}

    (acks,) = compare(other, this, 3, run, lambda _: None)
    assert order == ["other", "this", "this", "other", "other", "this"]
    assert (acks.other, acks.this) == ((10.0, 40.0, 50.0), (20.0, 30.0, 60.0))
    assert acks.ratio == 1.2  # the median of 2, 0.75 and 1.2, not the ratio of two medians


def test_figures_that_one_of_both_lacks_are_left_out() -> None:
    figures = compared([{"a": 1.0}, {"a": 0.0, "b": 2.0}], [{"a": 3.0, "b": 2.0}, {"a": 3.0, "b": 2.0}])
    assert figures == [Compared("a", (1.0, 0.0), (3.0, 3.0))]
    assert figures[0].ratio == 3.0
    assert Compared("a", (0.0,), (3.0,)).ratio is None


def test_of_what_the_benchmark_prints_every_number_is_a_figure() -> None:
    told = {"acks": 5, "p50": {"1": 0.5, "8": 1.5}, "kills": [3, 1, 2], "none": [], "rows": [{"a": 1}], "text": "x"}
    assert figures_of(told) == {"acks": 5.0, "p50.1": 0.5, "p50.8": 1.5, "kills": 2.0}
