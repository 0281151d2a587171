"""The README is a promise: its commands and its program are run here as they are written there."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from fencepost_testing.local_cluster import LocalCluster

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


def test_the_ten_lines_of_the_library_work(
    run: Callable[[Coroutine[Any, Any, None]], None], cluster_factory: Callable[..., LocalCluster]
) -> None:
    async def scenario() -> None:
        async with cluster_factory(brokers=3) as cluster:
            program = block("python", "Producer").replace("127.0.0.1:9092", cluster.bootstrap)
            done = await asyncio.to_thread(run_quietly, [sys.executable, "-c", program])
            assert done.returncode == 0, done.stderr
            assert "offset=0" in done.stdout
            again = await asyncio.to_thread(run_quietly, [sys.executable, "-c", program])
            assert again.returncode == 0, again.stderr
            assert "two pints" in done.stdout

    run(scenario())


@pytest.mark.timeout(300)  # a dozen commands, one after another, on a machine that may be busy with other tests
def test_the_daily_commands_work_in_their_order(tmp_path: Path) -> None:
    environment = {**os.environ, "FENCEPOST_DATA_DIR": str(tmp_path / "data")}
    commands = [line.split("#")[0].strip() for line in block("sh", "cluster up").splitlines()]
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
