"""After a power failure of every in-sync replica the command that elects a leader takes the longest log that is left."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from fencepost import AdminClient, Consumer, Producer
from fencepost.errors import ElectionNotNeeded, EligibleLeadersNotAvailable
from fencepost.history_format import from_line
from fencepost_proto.protocol.record_batch import iter_batches
from fencepost_testing.local_cluster import AsyncLocalCluster
from fencepost_testing.waiting import until
from tests.asynchronous import asynchronous
from tests.integration.command_line import Shell

ClusterFactory = Callable[..., AsyncLocalCluster]

KEPT = 10  # records on every replica; the last one in sync acknowledges as many more
LEFT = 3  # batches that the power failure leaves there


def lose_power(cluster: AsyncLocalCluster, broker: int) -> None:
    """To a killed broker: its machine was rebooted meanwhile, and its log's tail had not been synced."""
    folder = cluster.member(broker).directory
    meta = folder / "meta.properties"
    text, replaced = re.subn(r"boot.id=.*", "boot.id=the-boot-before", meta.read_text())
    assert replaced == 1
    meta.write_text(text)
    log = folder / "orders-0" / f"{0:020}.log"
    content = log.read_bytes()
    positions = [position for position, _ in iter_batches(content)]
    assert len(positions) == 2 * KEPT
    log.write_bytes(content[: positions[LEFT]])
    assert all(int(snapshot.stem) <= LEFT for snapshot in log.parent.glob("*.snapshot"))


async def last_replica_loses_power(cluster: AsyncLocalCluster, admin: AdminClient) -> None:
    """Brokers 2 and 3 hold 10 records and are out of sync; 1, the last in sync, held 20 and comes back with 3."""
    await admin.create_topic("orders", assignments=[(1, 2, 3)], min_insync_replicas=1)

    async def in_sync(*brokers: int) -> None:
        async def holds() -> bool:
            return (await admin.describe_topic("orders")).partitions[0].isr == brokers

        await until(holds, f"{brokers} in sync")

    async with Producer(cluster.bootstrap) as producer:
        await in_sync(1, 2, 3)
        for n in range(KEPT):
            await producer.send_and_wait("orders", b"%d" % n)
        for broker in (2, 3):
            await cluster.kill(broker)
        await in_sync(1)
        for n in range(KEPT, 2 * KEPT):
            await producer.send_and_wait("orders", b"%d" % n)
    await cluster.kill(1)
    lose_power(cluster, 1)
    for broker in (1, 2, 3):
        await cluster.start(broker)
    await in_sync()

    await all_live(admin)
    assert (await admin.describe_topic("orders")).partitions[0].last_known_isr == (1,)


async def fenced(admin: AdminClient, broker_id: int) -> bool:
    return any(b.fenced for b in (await admin.describe_cluster()).brokers if b.id == broker_id)


async def all_live(admin: AdminClient) -> None:
    async def holds() -> bool:
        return not any([await fenced(admin, broker) for broker in (1, 2, 3)])

    await until(holds, "all three live")


async def values(cluster: AsyncLocalCluster) -> list[int]:
    async with Consumer(cluster.bootstrap, "orders") as consumer:
        (end,) = (await consumer.end_offsets(consumer.assignment)).values()
        return [int((await anext(consumer)).value or b"") for _ in range(end)]


@asynchronous
async def test_without_a_choice_the_longest_log_is_elected_and_not_who_was_last_in_sync(
    cluster: AsyncLocalCluster,
) -> None:
    async with AdminClient(cluster.bootstrap) as admin:
        await last_replica_loses_power(cluster, admin)
        candidates = await admin.unclean_candidates("orders", 0)
        assert [(c.broker_id, c.log_end_offset, c.was_in_sync, c.failure) for c in candidates] == [
            (2, KEPT, False, ""),
            (3, KEPT, False, ""),
            (1, LEFT, True, ""),
        ]
        await admin.elect_leader("orders", 0, unclean=True)
        assert (await admin.describe_topic("orders")).partitions[0].leader == 2
        assert await values(cluster) == list(range(KEPT))
        with pytest.raises(ElectionNotNeeded):
            await admin.unclean_candidates("orders", 0)


@asynchronous
async def test_the_command_shows_what_it_chose_from_says_what_may_be_lost_and_asks(
    cluster: AsyncLocalCluster,
) -> None:
    async with AdminClient(cluster.bootstrap) as admin:
        shell = Shell(cluster.directory)
        await last_replica_loses_power(cluster, admin)
        await cluster.kill(3)
        await until(lambda: fenced(admin, 3), "broker 3 fenced")

        refused = await asyncio.to_thread(shell.run, "topic", "elect", "orders", "0", "--unclean", stdin=b"n\n")
        assert refused.returncode == 1
        assert "acknowledged records may be lost" in refused.stdout
        rows = [line.split() for line in refused.stdout.replace("│", " ").splitlines()]
        assert ["2", "0", "10", "to", "lead"] in rows, refused.stdout
        assert ["1", "0", "3", "yes"] in rows, refused.stdout
        assert ["3", "?", "?", "not", "live"] in rows, refused.stdout
        assert f"What was acknowledged at offset {KEPT} and above is lost" in refused.stdout
        assert "Broker 3 cannot be asked, and may hold more" in refused.stdout
        assert (await admin.describe_topic("orders")).partitions[0].leader == -1

        recorded = cluster.directory / "elections.jsonl"
        elect = ("topic", "elect", "orders", "0", "--unclean", "--yes", "--history", str(recorded))
        assert "orders-0 is led by broker 2" in await asyncio.to_thread(shell.ok, *elect)
        order, done = (from_line(line) for line in recorded.read_text().splitlines())
        assert (order.type, order.op, order.start_offset, order.end_offset) == ("invoke", "elect", KEPT, KEPT)
        assert (done.type, done.op, done.partition, done.id) == ("ok", "elect", 0, order.id)
        assert await values(cluster) == list(range(KEPT))
        assert "ELECTION_NOT_NEEDED" in await asyncio.to_thread(
            shell.fails, "topic", "elect", "orders", "0", "--unclean", "--yes"
        )


@asynchronous
async def test_a_candidate_that_has_restarted_since_it_was_asked_is_not_elected(
    cluster: AsyncLocalCluster,
) -> None:
    async with AdminClient(cluster.bootstrap) as admin:
        await last_replica_loses_power(cluster, admin)
        best = (await admin.unclean_candidates("orders", 0))[0]
        assert best.broker_id == 2
        await cluster.kill(2)
        await until(lambda: fenced(admin, 2), "broker 2 fenced")
        await cluster.restart(2)
        await all_live(admin)
        with pytest.raises(EligibleLeadersNotAvailable, match="has restarted"):
            await admin.elect_leader("orders", 0, unclean=True, leader=best)
        assert (await admin.describe_topic("orders")).partitions[0].leader == -1


def test_help_shows_an_example(tmp_path: Path) -> None:
    text = Shell(tmp_path).ok("topic", "elect", "--help")
    assert "Example: fencepost topic elect orders 0" in text
    assert "--unclean" in text
