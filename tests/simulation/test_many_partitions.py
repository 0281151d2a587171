"""What a restart costs at the controller, counted: messages and bytes, with 50 brokers and up to 20,000 partitions."""

from __future__ import annotations

import pytest

from tests.simulation.many_partitions import REPLICATION_FACTOR, ManyPartitions

BROKERS = 50
ENTITY_BYTES = 80  # of one partition's change on the wire, at most


@pytest.mark.parametrize("partitions", [2_000, pytest.param(20_000, marks=pytest.mark.long)])
@pytest.mark.timeout(300)
def test_restarts_cost_few_versions_and_each_change_goes_once_to_each_broker(partitions: int) -> None:
    world = ManyPartitions(BROKERS, partitions)
    hosted = partitions * REPLICATION_FACTOR // BROKERS  # replicas of each broker
    everyone = range(1, BROKERS + 1)

    async def story() -> None:
        await world.form()
        await world.start(*everyone)
        await world.in_sync()
        world.counted()

        # One dies: one version, one message to each of the others.
        world.kill(7)
        await world.until(lambda: world.image.brokers[7].fenced, "broker 7 fenced")
        died = world.counted()
        assert (died.versions, died.changes, died.deltas) == (1, hosted, BROKERS - 1)
        assert died.delta_bytes <= died.deltas * (hosted * ENTITY_BYTES + 200)

        # It is back: each of its leaders asks once for all partitions that it may join.
        await world.start(7)
        await world.in_sync()
        back = world.counted()
        assert back.proposals == back.changes == hosted
        assert back.requests <= BROKERS, "one request for each leader"
        assert back.versions <= 2 + back.requests
        assert back.images == 1
        assert back.image_bytes <= partitions * ENTITY_BYTES + 10_000
        assert back.deltas <= back.versions * BROKERS
        assert back.delta_bytes <= BROKERS * (hosted * ENTITY_BYTES + 200 * back.versions)

        # All at once.
        world.kill(*everyone)
        await world.until(lambda: all(b.fenced for b in world.image.brokers.values()), "all fenced")
        world.counted()
        await world.start(*everyone)
        await world.in_sync()
        again = world.counted()
        assert again.changes <= 2 * REPLICATION_FACTOR * partitions
        assert again.versions <= 8 * BROKERS, f"{again}: a version for each request at most, not for each partition"
        assert again.requests <= 8 * BROKERS
        assert again.proposals <= REPLICATION_FACTOR * partitions
        assert again.deltas <= again.versions * BROKERS
        assert again.delta_bytes <= BROKERS * (again.changes * ENTITY_BYTES + 200 * again.versions)
        assert again.images <= 2 * BROKERS, "one for each session"
        assert again.image_bytes <= again.images * (partitions * ENTITY_BYTES + 10_000)
        for what, traffic in (("one died", died), ("it is back", back), ("all restarted", again)):
            print(f"{partitions} partitions, {BROKERS} brokers, {what}: {traffic}")

    world.run(story())
