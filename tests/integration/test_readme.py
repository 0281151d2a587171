"""The README is a promise: its commands and its program are run here as they are written there."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fencepost_testing.ports import reserve_ports

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
STEP_TIMEOUT_S = 60


def block(language: str, containing: str) -> str:
    blocks: list[str] = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    return next(text for text in blocks if containing in text)


def run_quietly(command: list[str], environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=STEP_TIMEOUT_S, check=False
    )


def first_of_free_ports(count: int) -> int:
    """Below those that the system gives to whoever asks for any, so that no other test takes them meanwhile."""
    for first in range(20_000 + os.getpid() % 10_000, 31_000, count):
        with contextlib.suppress(OSError):
            for port in reserve_ports(count, first):
                port.release()
            return first
    pytest.fail(f"no {count} free ports in a row")


@pytest.mark.timeout(200)
def test_the_first_screen_works_as_it_is_written(tmp_path: Path) -> None:
    environment = {**os.environ, "FENCEPOST_DATA_DIR": str(tmp_path / "data")}
    program = tmp_path / "orders.py"
    up, run, down = [line.split("#")[0].strip() for line in block("sh", "orders.py").splitlines()]
    port = str(first_of_free_ports(3))
    program.write_text(block("python", "async with Producer").replace("9092", port))
    try:
        printed = ""
        for command in (up, run, run):
            here = command.replace("9092", port).replace("orders.py", str(program))
            done = run_quietly(["bash", "-c", here], environment)
            assert done.returncode == 0, f"{here}: {done.stdout}{done.stderr}"
            printed += done.stdout
        assert "offset=0" in printed
        assert "two pints" in printed
    finally:
        assert run_quietly(["bash", "-c", down], environment).returncode == 0


def test_the_program_that_kills_a_leader_works_as_it_is_written() -> None:
    done = run_quietly([sys.executable, "-c", block("python", "AsyncLocalCluster")])
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[b'one pint', b'two pints']"


def test_librdkafka_loses_its_leader_as_it_is_written() -> None:
    done = run_quietly([sys.executable, "-c", block("python", "from confluent_kafka import Producer")])
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "None 1"


@pytest.mark.timeout(300)  # a dozen commands, one after another, on a machine that may be busy with other tests
def test_the_daily_commands_work_in_their_order(tmp_path: Path) -> None:
    environment = {**os.environ, "FENCEPOST_DATA_DIR": str(tmp_path / "data")}
    commands = [line.split("#")[0].strip() for line in block("sh", "cluster status").splitlines()]
    assert len(commands) > 8
    try:
        orders = [line for line in commands if "topic create" in line]
        assert orders
        for command in [*commands[:-1], *orders, commands[-1]]:  # what makes a topic may be run twice
            done = run_quietly(["bash", "-c", command], environment)
            assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    finally:
        subprocess.run(
            ["bash", "-c", "./scripts/cluster down"], cwd=ROOT, env=environment, capture_output=True, check=False
        )
