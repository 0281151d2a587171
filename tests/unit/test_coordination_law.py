"""Laws of classic groups over random histories: G12, G13, generations, and a state that the log alone can give."""

from __future__ import annotations

import random

import pytest

from tests.unit.group_world import World


@pytest.mark.parametrize("seed", range(30))
def test_whatever_happens_a_partition_has_one_owner_and_generations_never_go_back(seed: int) -> None:
    world = World(random.Random(seed), statics=seed % 3)
    world.run(400)
    world.settle()
    assert world.counts["joined"] > 5
    assert world.counts["synced"] > 0


def test_histories_come_to_everything_that_they_are_meant_to_judge() -> None:
    counts: dict[str, int] = {}
    for seed in range(8):
        world = World(random.Random(1_000 + seed), statics=seed % 3)
        world.run(500)
        for what, count in world.counts.items():
            counts[what] = counts.get(what, 0) + count
    for what in (
        "joined", "synced", "committed", "fetched", "failover", "append refused", "ILLEGAL_GENERATION", "UNKNOWN_MEMBER_ID",
        "REBALANCE_IN_PROGRESS", "FENCED_INSTANCE_ID", "MEMBER_ID_REQUIRED",
    ):  # fmt: skip
        assert counts.get(what, 0) >= 3, (what, counts)
