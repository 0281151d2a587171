"""The tests of ten lines in other languages that docs/TESTING.md shows: each kills a leader, by HTTP, and passes.

Those whose language is not on this machine are skipped.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.interop.clients import BUILT, run_command

HERE = Path(__file__).parent / "ten_lines"
TIMEOUT_S = 500


@dataclass(frozen=True, slots=True)
class Language:
    name: str
    needs: tuple[str, ...]
    build: tuple[str, ...]
    test: tuple[str, ...]
    passed: str  # what it says of a test that has passed


LANGUAGES = (
    Language(
        "java", ("java", "mvn"), ("mvn", "-q", "-B", "test-compile"), ("mvn", "-B", "test"), "Tests run: 1, Failures: 0"
    ),
    Language(
        "go",
        ("go",),
        ("go", "vet", "./..."),
        ("go", "test", "-count=1", "-v", "./..."),
        "--- PASS: TestOrdersSurviveALeaderKill",
    ),
    Language(
        "node",
        ("node", "npm"),
        ("npm", "install", "--no-audit", "--no-fund", "--no-package-lock"),
        ("npx", "jest"),
        "1 passed, 1 total",
    ),
)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("language", LANGUAGES, ids=lambda language: language.name)
def test_a_test_of_another_language_kills_a_leader(language: Language) -> None:
    if missing := [command for command in language.needs if shutil.which(command) is None]:
        pytest.skip(f"{' and '.join(missing)} not found")
    folder = BUILT / "ten_lines" / language.name
    ignored = shutil.ignore_patterns("node_modules", "target")
    shutil.copytree(HERE / language.name, folder, dirs_exist_ok=True, ignore=ignored)
    run_command(list(language.build), folder)
    serve = [sys.executable, "-m", "fencepost_cli", "serve-tests", "--port", "0", "--"]
    ended = subprocess.run(
        [*serve, *language.test], cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    said = ended.stdout + ended.stderr
    assert (ended.returncode, language.passed in said) == (0, True), said
