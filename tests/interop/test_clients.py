"""Each client of the interop suite, shorter than `./scripts/interop` runs it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.asynchronous import run
from tests.interop.clients import CLIENTS
from tests.interop.scenario import Options, Scenario

RUN_TIMEOUT_S = 500.0
OPTIONS = Options(records=4_000, rate=250.0, kills=2, groups=False)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", list(CLIENTS))
def test_everything_is_written_once_and_read(name: str, tmp_path: Path) -> None:
    client = CLIENTS[name]
    if missing := client.missing():
        pytest.skip(f"{' and '.join(missing)} not found")
    client.build()
    result = run(Scenario(client, OPTIONS, tmp_path, print).run(), RUN_TIMEOUT_S)
    assert result.produce == []
    assert result.consume == []
