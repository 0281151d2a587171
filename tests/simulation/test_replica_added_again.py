"""A replica is removed and added again before its broker has heard of either."""

from __future__ import annotations

import asyncio

from tests.gauntlet.story import Story, tale


@tale()
async def test_a_replica_does_not_join_with_the_log_that_it_is_about_to_delete(story: Story) -> None:
    """Its broker still holds everything, and would be let into the in-sync set with it; then it hears of its removal,
    deletes the log, and begins an empty one as a member in good standing.

    Here: the removal begins a new leader epoch, so the leader does not talk to a follower that has not heard of it.
    """
    await story.create_topic("orders", [[1, 2, 3]], min_insync_replicas=1)
    client = await story.producer()
    await story.acked(await client.send("A"))
    await story.in_sync()
    story.cut("controller", "broker-3")
    await story.reassign("orders", 0, [1, 2])
    await story.until(lambda: story.partition("orders-0").replicas == (1, 2), "broker 3 is removed")
    await story.reassign("orders", 0, [3, 1, 2])
    await asyncio.sleep(1)
    assert story.values(3) == ["A"], "it has heard of nothing"
    for node in ("broker-1", "broker-2"):
        story.cut(node, "broker-3")
    story.heal("controller", "broker-3")
    await story.until(lambda: story.traced("broker-3#1", "deleting folder"), "it hears of its removal")
    await story.until(lambda: story.values(3) == [], "it has begun again")
    assert 3 not in story.partition("orders-0").isr

    story.kill("broker-1", "broker-2")
    await asyncio.sleep(5)
    assert not story.leads(3)
    for node in ("broker-1", "broker-2"):
        story.heal(node, "broker-3")
    story.start("broker-1", "broker-2")
    await story.in_sync()
    assert await story.end() == {"orders-0": ["A"]}
