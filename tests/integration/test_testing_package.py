"""`fencepost_testing` as its own documentation shows it."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import fencepost_testing
from fencepost_testing import LocalCluster

TIMEOUT_S = 60


def example() -> str:
    """The program in the package's docstring."""
    assert fencepost_testing.__doc__ is not None
    lines = fencepost_testing.__doc__.splitlines()
    indented = [number for number, line in enumerate(lines) if line.startswith("    ")]
    return textwrap.dedent("\n".join(lines[indented[0] : indented[-1] + 1]))


def test_the_example_of_the_package_works() -> None:
    done = subprocess.run(
        [sys.executable, "-c", example()], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[b'one pint', b'two pints']\n"


def test_a_program_without_an_event_loop_has_a_cluster_too() -> None:
    with LocalCluster(brokers=1) as cluster:
        assert cluster.running("controller")
        assert "controller" in cluster.log(1)
        cluster.kill(1)
    assert not cluster.any_running()
    assert not cluster.directory.exists()
