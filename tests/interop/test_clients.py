"""A client of the interop suite, shorter than `./scripts/interop` runs it.

One by default, which keeps the suite itself in order; FENCEPOST_INTEROP=all, or names with commas between them, runs
others (a minute each, and their builds).
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.asynchronous import run
from tests.interop.clients import CLIENTS
from tests.interop.scenario import Options, Scenario

CHOSEN = os.environ.get("FENCEPOST_INTEROP", "confluent-kafka")
NAMES = list(CLIENTS) if CHOSEN == "all" else CHOSEN.split(",")
RUN_TIMEOUT_S = 500.0
OPTIONS = Options(records=2_000, rate=100.0, kills=2)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", NAMES)
def test_everything_is_written_once_and_read(name: str, tmp_path: Path) -> None:
    client = CLIENTS[name]
    if missing := client.missing():
        pytest.skip(f"{' and '.join(missing)} not found")
    client.build()
    result = run(Scenario(client, OPTIONS, tmp_path, print).run(), RUN_TIMEOUT_S)
    assert result.produce == []
    assert result.consume == []
    assert result.story == []
