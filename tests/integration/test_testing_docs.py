"""The programs and tests in docs/TESTING.md work as they are written there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTING = (Path(__file__).parents[2] / "docs" / "TESTING.md").read_text()
STEP_TIMEOUT_S = 100


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", TESTING, re.DOTALL)


def write(folder: Path, name: str) -> None:
    """The file that a block says it is."""
    (found,) = (text for text in blocks() if text.startswith(f"# {name}\n"))
    (folder / name).write_text(found)


def run(folder: Path, *command: str) -> str:
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, capture_output=True, text=True, timeout=STEP_TIMEOUT_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("library", "files"),
    [("faststream", ("app.py", "test_app.py")), ("confluent_kafka", ("shipping.py", "test_shipping.py"))],
)
@pytest.mark.timeout(240)
def test_the_applications_and_their_tests_work(library: str, files: tuple[str, str], tmp_path: Path) -> None:
    pytest.importorskip(library)
    for name in files:
        write(tmp_path, name)
    told = run(tmp_path, "-m", "pytest", "-q", "-p", "fencepost_testing.pytest_plugin", "-p", "no:cacheprovider", ".")
    assert "1 passed" in told


def test_the_program_without_pytest_works(tmp_path: Path) -> None:
    (program,) = (text for text in blocks() if "with LocalCluster(brokers=3) as cluster" in text)
    (tmp_path / "program.py").write_text(program)
    leader, isr = run(tmp_path, "program.py").split(" ", 1)
    assert int(leader) in (1, 2, 3)
    assert isr.startswith("[")
