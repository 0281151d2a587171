"""The table of clients keeps the rows of clients that were not run again."""

from __future__ import annotations

from tests.interop.scenario import Result
from tests.interop.table import merge


def test_only_the_rows_of_the_clients_that_ran_are_new() -> None:
    old = merge("", [Result("aiokafka", "0.14.0", kills=10), Result("kafkajs", skipped="node not found")])
    new = merge(
        old, [Result("kafkajs", "2.2.4", records=3000, kills=9, produce=["lost: 1"], unavailable_ms=[20.0, 90.0, 30.0])]
    )
    assert new.splitlines()[2:] == [
        "| aiokafka | 0.14.0 | exact | exact | yes | 0 | 10 | 0 | – |",
        "| kafkajs | 2.2.4 | **fails** | exact | yes | 3000 | 9 | 0 | 30 / 90 |",
    ]
