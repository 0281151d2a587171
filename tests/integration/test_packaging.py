"""What is installed: a wheel and an sdist that work outside the checkout, and extras that bring no more than is needed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

import fencepost
from tests.integration.installed_wheel import build, empty_environment, only, run

EXTRAS = {"cli", "dev", "docs", "etcd", "http", "kafka-clients", "server", "testing"}

# What only some installs have: importing it there must not be needed.
OF_THE_COMMAND_LINE = ("click", "matplotlib", "psutil", "rich", "starlette", "typer", "uvicorn")
OF_SERVERS = ("prometheus_client", "uvloop")

BLOCKER = """
import importlib, importlib.abc, pkgutil, sys

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"{{name}} is not installed here", name=name)

sys.meta_path.insert(0, Blocker())
"""
IMPORT_EVERYTHING = """
for name in {packages!r}:
    package = importlib.import_module(name)
    for module in pkgutil.walk_packages(package.__path__, name + "."):
        importlib.import_module(module.name)
print(len([name for name in sys.modules if name.partition(".")[0] in {packages!r}]))
"""


def metadata_of(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as file:
        name = next(name for name in file.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(file.read(name).decode())


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as file:
        return {name: file.read(name) for name in file.namelist() if not name.endswith("/RECORD")}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a wheel and an sdist of this checkout."""
    folder = tmp_path_factory.mktemp("dist")
    build(folder)
    return folder


def test_a_wheel_runs_the_demo_outside_the_checkout(built: Path, tmp_path: Path) -> None:
    python, site = empty_environment(tmp_path, only(built, "*.whl"))
    # The packages that it depends on come from this environment; its own .pth files, so the checkout, are not read there.
    (site / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
    where = run(
        [python, "-c", "import fencepost, fencepost_cli; print(fencepost.__file__, fencepost_cli.__file__)"], tmp_path
    )
    assert all(Path(path).is_relative_to(site) for path in where.split()), where

    command = python.parent / "fencepost"
    assert run([command, "--version"], tmp_path).strip() == fencepost.__version__
    output = run([command, "demo", "--records", "2000", "--kills", "1", "--json"], tmp_path)
    told = json.loads(output.splitlines()[-1])
    assert told["ok"] is True, told["problems"]
    assert told["records_in_log"] == 2000
    assert told["leader_kills"] == 1


def test_an_sdist_makes_the_same_wheel(built: Path, tmp_path: Path) -> None:
    with tarfile.open(only(built, "*.tar.gz")) as archive:
        archive.extractall(tmp_path, filter="data")
    source = only(tmp_path, "fencepost-*")
    assert (source / "scripts" / "demo").stat().st_mode & 0o111
    assert not list(source.rglob("__pycache__"))
    run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path / "dist"], source)
    assert contents(only(tmp_path / "dist", "*.whl")) == contents(only(built, "*.whl"))


def test_the_metadata_tell_the_version_the_extras_and_the_license(built: Path) -> None:
    metadata = metadata_of(only(built, "*.whl"))
    assert metadata["Version"] == fencepost.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert set(metadata.get_all("Provides-Extra") or []) == EXTRAS
    requirements = metadata.get_all("Requires-Dist") or []
    client_only = {re.split(r"[^\w-]", line)[0] for line in requirements if "extra ==" not in line}
    assert "grpcio" in client_only
    assert client_only.isdisjoint({*OF_THE_COMMAND_LINE, *OF_SERVERS})


@pytest.mark.parametrize(
    ("packages", "blocked"),
    [
        pytest.param(("fencepost",), (*OF_THE_COMMAND_LINE, *OF_SERVERS), id="client"),
        pytest.param(("fencepost_node", "fencepost_controller"), OF_THE_COMMAND_LINE, id="servers"),
    ],
)
def test_an_install_needs_nothing_of_the_extras_that_it_lacks(
    packages: tuple[str, ...], blocked: tuple[str, ...], tmp_path: Path
) -> None:
    program = BLOCKER.format(blocked=blocked) + IMPORT_EVERYTHING.format(packages=packages)
    imported = run([sys.executable, "-c", program], tmp_path)
    assert int(imported) > 20


def test_the_command_of_a_client_only_install_says_what_is_missing() -> None:
    program = (
        BLOCKER.format(blocked=(*OF_THE_COMMAND_LINE, *OF_SERVERS)) + "import fencepost_cli.__main__ as m; m.main()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "pip install 'fencepost[server,cli]'" in done.stderr
    assert "Traceback" not in done.stderr
