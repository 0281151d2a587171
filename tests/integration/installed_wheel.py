"""A virtual environment with this checkout's wheel, what one extra needs, and nothing else of what is installed here."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
STEP_TIMEOUT_S = 100


def run(command: list[str | Path], folder: Path) -> str:
    """Standard output of a command that must succeed, run in that folder without the checkout on its path."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=STEP_TIMEOUT_S, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def build(folder: Path) -> None:
    """A wheel and an sdist of this checkout."""
    run([sys.executable, "-m", "hatchling", "build", "-d", folder], ROOT)


def only(folder: Path, pattern: str) -> Path:
    [found] = folder.glob(pattern)
    return found


def empty_environment(folder: Path, wheel: Path) -> tuple[Path, Path]:
    """The Python of a new environment with the wheel in it, and its site-packages; no dependency is there yet."""
    environment = folder / "environment"
    run([sys.executable, "-m", "venv", "--without-pip", environment], folder)
    python = environment / "bin" / "python"
    pip: list[str | Path] = [sys.executable, "-m", "pip", "--python", python]
    run([*pip, "install", "--quiet", "--no-deps", "--no-index", wheel], folder)
    return python, Path(sysconfig.get_path("purelib", vars={"base": str(environment), "platbase": str(environment)}))


def environment_of(folder: Path, wheel: Path, *requirements: str) -> Path:
    """The Python of a new environment with the wheel, and with these packages and all that they depend on: they are
    symbolic links to those of this environment."""
    python, site = empty_environment(folder, wheel)
    for name in _closure(*requirements):
        _link(name, site)
    return python


def _closure(*requirements: str) -> set[str]:
    """The names of the packages that these need, without Fencepost itself."""
    needed: set[str] = set()
    left = [Requirement(text) for text in requirements]
    seen: set[tuple[str, str]] = set()
    while left:
        wanted = left.pop()
        name = re.sub(r"[-_.]+", "-", wanted.name).lower()
        for extra in wanted.extras or {""}:
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            try:
                requires = distribution(name).requires or []
            except PackageNotFoundError:  # of another system, or another version of Python
                continue
            for text in requires:
                requirement = Requirement(text)
                if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                    left.append(requirement)
            if name != "fencepost":
                needed.add(name)
    return needed


def _link(name: str, site: Path) -> None:
    """Every top-level file or folder of an installed package."""
    found = distribution(name)
    tops = {file.parts[0] for file in found.files or [] if file.parts[0] not in ("..", "__pycache__")}
    for top in tops:
        source = Path(str(found.locate_file(top)))
        if source.exists() and not (site / top).exists():
            (site / top).symlink_to(source)
