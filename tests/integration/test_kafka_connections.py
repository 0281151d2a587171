"""Memory of a broker with as many connections of Kafka's clients as it takes, idle ones and ones that do not read."""

from __future__ import annotations

from pathlib import Path

import pytest

from fencepost_cli import kafka_connections
from fencepost_cli.kafka_connections import measure_connections
from tests.asynchronous import asynchronous

ANSWERS_MB = 64 * 1.05  # client_answer_bytes, by default
BEYOND_MB = 0.5  # of a slow reader for which that has no room: one batch, half of that, and what the allocator keeps
IDLE_CONNECTION_KB = 20
IDLE_CPU_PERCENT = 10  # of a core that others use too
ASK_MS = 250


@pytest.mark.long
@asynchronous
async def test_idle_connections_and_slow_readers_take_what_they_may(tmp_path: Path) -> None:
    measured = await measure_connections(tmp_path / "cluster", print)
    print(measured.to_json())
    assert measured.idle_connections == kafka_connections.CONNECTIONS
    assert measured.idle_connection_kb < IDLE_CONNECTION_KB
    assert measured.idle_cpu_percent < IDLE_CPU_PERCENT
    assert measured.rss_slow_most_mb - measured.rss_idle_mb < ANSWERS_MB + BEYOND_MB * measured.slow_readers
    assert measured.ask_ms_p99 < ASK_MS
