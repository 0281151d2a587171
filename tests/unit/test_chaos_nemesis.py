"""How a chaos run keeps its schedule where carrying a fault out takes longer than planned."""

from __future__ import annotations

import asyncio
import time
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import Mock

from fencepost_testing.chaos.faults import Fault, FaultKind
from fencepost_testing.chaos.nemesis import Executor
from fencepost_testing.chaos.nemesis_log import NemesisLog

TAKES_S = 0.2
REST_S = 0.2
RUN_S = 1.0


class SlowExecutor(Executor):
    """Takes its time with each fault, and does nothing."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.carried_out: list[tuple[float, float]] = []

    async def _carry_out(self, fault: Fault) -> None:
        began_at = time.monotonic()
        await asyncio.sleep(TAKES_S)
        self.carried_out.append((began_at, time.monotonic()))


def test_a_nemesis_that_falls_behind_keeps_its_rests_and_ends_in_time(tmp_path: Path) -> None:
    """With little rest between many faults it had none in the end, and nothing ever recovered (chaos, seed 108)."""
    faults = [Fault(REST_S + n * (REST_S + 0.01), 0.01, FaultKind.KILL_BROKER, ("broker-1",)) for n in range(10)]
    started_at = time.monotonic()
    log = NemesisLog(tmp_path / "nemesis.jsonl", started_at, lambda line: None)
    executor = SlowExecutor(Mock(), Mock(), Mock(), None, log, duration_s=RUN_S, history=Mock())
    asyncio.run(executor.run(faults))
    ended_at = time.monotonic()
    log.close()
    for (_, undone_at), (began_at, _) in pairwise(executor.carried_out):
        assert began_at - undone_at >= REST_S - 0.005
    last_began_at, last_undone_at = executor.carried_out[-1]
    assert last_began_at - started_at < RUN_S + 0.5
    assert ended_at - last_undone_at < 0.5, "what is given up takes no time"
    assert log.skipped == {"kill-broker": 10 - len(executor.carried_out)}
    assert 1 <= len(executor.carried_out) <= 4
