"""Metadata in etcd: one commit at a time, by one controller, whatever becomes of requests and answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

import pytest

from fencepost_controller.decisions.lineage import MetadataWentBack
from fencepost_controller.store import CommitFailed, LeadershipLost, StoreError
from fencepost_controller.store.etcd import layout, term
from fencepost_controller.store.etcd.calls import Created, Delete, EtcdRefused, EtcdUnreachable, Get, Holds, Put
from fencepost_controller.store.etcd.layout import Keys, Leader, Version
from fencepost_controller.store.etcd.reader import MetadataReader, Standing
from fencepost_controller.store.etcd.term import Term
from fencepost_proto.protocol.lineage import Lineage, LineageStart
from fencepost_proto.protocol.metadata import (
    BrokerRegistration,
    ClusterIdentity,
    Entity,
    MetadataImage,
    NextProducerId,
    Topic,
)
from fencepost_testing.waiting import until
from tests.asynchronous import asynchronous
from tests.fake_etcd import EtcdCluster
from tests.unit.etcd_world import EtcdWorld, candidate, etcd_world


def changes(*entities: Entity) -> dict[str, Entity | None]:
    return {entity.key: entity for entity in entities}


async def commit(term: Term, before: MetadataImage, *entities: Entity, delete: tuple[str, ...] = ()) -> MetadataImage:
    some = {**changes(*entities), **dict.fromkeys(delete)}
    after = before.with_changes(before.version + 1, some)
    await term.commit(before, after, some)
    return after


async def read(world: EtcdWorld) -> MetadataImage:
    """As a controller that has just started reads it."""
    reader = MetadataReader(world.client(), world.keys)
    await reader.catch_up()
    return reader.image


def entities(image: MetadataImage) -> list[Entity]:
    return sorted(image.entities(), key=lambda entity: entity.key)


BEGUN = (ClusterIdentity("c"), Lineage((LineageStart(7, 1),)))
A_BROKER = BrokerRegistration(1, "127.0.0.1:9", 1, "incarnation", fenced=False)


@asynchronous
async def test_what_was_committed_is_read_by_the_next_controller_and_followed_by_the_others() -> None:
    async with etcd_world() as world, candidate(world) as one:
        term = await one.win()
        follower = MetadataReader(world.client(), world.keys)
        standing = await follower.catch_up()
        assert standing.leader is not None
        assert (standing.leader.controller_id, standing.version) == (1, Version())
        following = asyncio.create_task(_follow(follower))
        image = await commit(term, MetadataImage(), *BEGUN, NextProducerId(1_000), Topic("id", "a"))
        image = await commit(term, image, NextProducerId(2_000), delete=("topics/id",))
        assert await read(world) == image
        await until(lambda: follower.image == image, "the follower has both")
        assert not follower.decided  # nothing about brokers
        image = await commit(term, image, A_BROKER)
        await until(lambda: follower.image == image, "the follower has the broker")
        assert follower.decided == standing.leader.revision
        following.cancel()
        await asyncio.wait([following])
        assert entities(image) == sorted((*BEGUN, NextProducerId(2_000), A_BROKER), key=lambda entity: entity.key)


async def _follow(reader: MetadataReader) -> None:
    while True:
        standing = await reader.catch_up()
        with suppress(EtcdUnreachable):  # a busy machine may be silent for longer than a watch may
            async for _ in reader.follow(standing):
                pass


@asynchronous
async def test_a_commit_whose_answer_is_lost_is_made_once_and_known_to_be_made() -> None:
    async with etcd_world() as world, candidate(world) as one:
        term = await one.win()
        image = await commit(term, MetadataImage(), *BEGUN)
        world.member.lost_answers = 3
        image = await commit(term, image, NextProducerId(1_000))
        assert world.member.lost_answers == 0
        assert await read(world) == image
        assert len([key for key in world.cluster.keys if b"/log/" in key]) == 2


@asynchronous
async def test_a_commit_that_is_carried_out_after_its_failure_is_known_or_never_made() -> None:
    """etcd answers with an error, and carries the request out later: before the repetition, or after it."""
    for late_s in (0.0, 0.2):
        async with etcd_world() as world, candidate(world) as one:
            term = await one.win()
            image = await commit(term, MetadataImage(), *BEGUN)
            world.member.late_requests, world.member.late_s = 1, late_s
            image = await commit(term, image, NextProducerId(1_000))
            image = await commit(term, image, NextProducerId(2_000))
            await asyncio.sleep(late_s)  # nothing may come of it any more: there is no condition to wait for
            assert await read(world) == image


@asynchronous
async def test_no_commit_is_made_after_another_controller_has_taken_over() -> None:
    async with etcd_world() as world, candidate(world, 1) as one, candidate(world, 2) as two:
        old = await one.win()
        image = await commit(old, MetadataImage(), *BEGUN)
        new = await two.win(Leader(1, "", "", old.revision))
        assert new.epoch > old.epoch
        assert two.reader.image == image
        with pytest.raises(LeadershipLost, match="another controller"):
            await commit(old, image, NextProducerId(1_000))
        with pytest.raises(LeadershipLost):
            await old.confirm()
        with pytest.raises(LeadershipLost):
            await old.write_snapshot(image)
        assert await read(world) == image
        await new.confirm()


@asynchronous
async def test_a_commit_that_another_leader_finds_is_not_denied() -> None:
    """The answer was lost, then the leadership: it is not known what became of it."""
    async with etcd_world() as world, candidate(world, 1) as one, candidate(world, 2) as two:
        old = await one.win()
        image = await commit(old, MetadataImage(), *BEGUN)
        world.member.lost_answers = 10_000
        committing = asyncio.create_task(commit(old, image, NextProducerId(1_000)))
        await until(lambda: world.cluster.keys[world.keys.version].value.startswith(b"2 "), "it is made")
        world.cluster.revoke(one.lease.lease_id)
        world.member.lost_answers = 0
        with pytest.raises(LeadershipLost):
            await committing
        await two.win()
        assert two.reader.image.version == 2


@asynchronous
async def test_two_controllers_that_take_over_at_once_are_one() -> None:
    async with etcd_world() as world, candidate(world, 1) as one, candidate(world, 2) as two:
        terms = await asyncio.gather(*(c.leadership.take_over(c.me, None) for c in (one, two)))
        assert sum(term is not None for term in terms) == 1


@asynchronous
async def test_a_creation_whose_answer_is_lost_is_this_controllers_leadership_nevertheless() -> None:
    async with etcd_world() as world, candidate(world) as one:
        await one.lease.wait()
        world.member.lost_answers = 1
        term = await one.win()
        await term.confirm()


@asynchronous
async def test_only_the_dead_ones_leadership_is_taken_over() -> None:
    """The verdict came late: another controller has taken over meanwhile."""
    async with (
        etcd_world() as world,
        candidate(world, 1) as one,
        candidate(world, 2) as two,
        candidate(world, 3) as three,
    ):
        old = await one.win()
        new = await two.win(Leader(1, "", "", old.revision))
        assert await three.leadership.take_over(three.me, Leader(1, "", "", old.revision)) is None
        await new.confirm()


@asynchronous
async def test_a_commit_larger_than_a_request_is_whole_or_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    async with etcd_world() as world, candidate(world) as one:
        term = await one.win()
        image = await commit(term, MetadataImage(), *BEGUN)
        many = [Topic(f"id-{n}", f"{n:04d}" + "x" * 200) for n in range(9_000)]
        seen: list[bytes] = []
        world.cluster.on_write = lambda revision, events: seen.extend(event.kv.key for event in events)
        image = await commit(term, image, *many)
        assert sum(b"/parts/" in key for key in seen) > 3
        assert seen[-1] == world.keys.log(2)  # names the pieces, which are there already
        assert await read(world) == image


@asynchronous
async def test_a_snapshot_replaces_the_log_and_is_read_in_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(term, "SNAPSHOT_ENTRIES", 5)
    monkeypatch.setattr(layout, "PIECE_BYTES", 100)
    async with etcd_world() as world, candidate(world) as one:
        won = await one.win()
        image = await commit(won, MetadataImage(), *BEGUN)

        def log_is_short() -> bool:
            return len([key for key in world.cluster.keys if b"/log/" in key]) < 10

        for number in range(1, 23):
            image = await commit(won, image, NextProducerId(number * 1_000), Topic(f"id-{number}", f"topic-{number}"))
            await until(log_is_short, "the log is cut")  # a snapshot may be slower than many commits
        assert sum(b"/image/" in key for key in world.cluster.keys) > 2
        assert await read(world) == image
        await won.close()


@asynchronous
async def test_a_follower_that_fell_behind_the_log_reads_the_snapshot() -> None:
    async with etcd_world() as world, candidate(world) as one:
        term = await one.win()
        image = await commit(term, MetadataImage(), *BEGUN)
        follower = MetadataReader(world.client(), world.keys)
        await follower.catch_up()
        for number in range(1, 4):
            image = await commit(term, image, NextProducerId(number * 1_000))
        await term.write_snapshot(image)
        image = await commit(term, image, NextProducerId(9_000))
        await follower.catch_up()
        assert follower.image == image


@asynchronous
async def test_a_refused_commit_was_not_made_and_the_next_one_is() -> None:
    async with etcd_world() as world, candidate(world) as one:
        term = await one.win()
        image = await commit(term, MetadataImage(), *BEGUN)
        refuse: list[Callable[..., object]] = [world.cluster.transact]
        world.cluster.transact = _no_space  # type: ignore[method-assign]
        with pytest.raises(CommitFailed, match="database space exceeded"):
            await commit(term, image, NextProducerId(1_000))
        world.cluster.transact = refuse[0]  # type: ignore[method-assign]
        image = await commit(term, image, NextProducerId(1_000))
        assert await read(world) == image


def _no_space(request: object) -> object:
    import grpc

    from tests.fake_etcd import Refused

    raise Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded")


# ---- Leases ----


@asynchronous
async def test_a_leadership_whose_lease_is_over_by_its_own_clock_commits_nothing_more() -> None:
    async with etcd_world() as world, candidate(world, ttl_s=2) as one:
        term = await one.win()
        image = await commit(term, MetadataImage(), *BEGUN)
        world.cluster.majority(False)
        with pytest.raises(LeadershipLost, match="renewed in time"):
            await commit(term, image, NextProducerId(1_000))
        await until(lambda: one.lost == 1, "the lease is known to be lost")
        world.cluster.majority(True)
        await one.lease.wait()
        with pytest.raises(LeadershipLost):
            await term.confirm()


@asynchronous
async def test_the_key_of_a_controller_that_is_gone_goes_with_its_lease() -> None:
    async with etcd_world() as world, candidate(world, 2) as two:
        async with candidate(world, 1, ttl_s=2) as one:
            await one.win()
        await two.lease.wait()
        await until(lambda: world.keys.leader not in world.cluster.keys, "the key is gone")
        await two.win()


@asynchronous
async def test_a_lease_that_is_given_up_while_another_is_granted_is_renewed_as_seldom_as_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It was lost, and the leadership ends after that."""
    async with etcd_world() as world, candidate(world) as one:
        await one.lease.wait()
        renewed: list[int] = []
        granting = asyncio.Event()

        def renew(lease_id: int, cluster: EtcdCluster = world.cluster) -> int:
            renewed.append(lease_id)
            return EtcdCluster.renew(cluster, lease_id)

        def grant(ttl_s: int, cluster: EtcdCluster = world.cluster) -> int:
            granting.set()
            return EtcdCluster.grant(cluster, ttl_s)

        monkeypatch.setattr(world.cluster, "renew", renew)
        monkeypatch.setattr(world.cluster, "grant", grant)
        giving_up = asyncio.create_task(one.lease.give_up())
        await granting.wait()
        assert not one.lease.lease_id, "the answer is on its way"
        await one.lease.give_up()
        await giving_up
        await one.lease.wait()
        client = world.client()
        for _ in range(20):
            await client.get(Get(b"a"))
        assert len(renewed) < 3


# ---- etcd that has gone back ----


@asynchronous
async def test_a_reader_notices_that_etcd_was_restored_from_a_backup() -> None:
    async with etcd_world() as world, candidate(world) as one:
        term = await one.win()
        image = await commit(term, MetadataImage(), *BEGUN)
        backup = world.cluster.back_up()
        image = await commit(term, image, NextProducerId(1_000))
        follower = MetadataReader(world.client(), world.keys)
        await follower.catch_up()
        world.cluster.restore(backup)
        with pytest.raises(MetadataWentBack, match=r"it is at metadata version 1 .* this controller knows version 2"):
            await follower.catch_up()
        with pytest.raises(LeadershipLost, match="is at version"):  # its key is in the backup: only the version tells
            await commit(term, image, NextProducerId(2_000))


@asynchronous
async def test_a_restored_etcd_that_has_gone_on_is_noticed_too() -> None:
    async with etcd_world() as world, candidate(world, 1) as one, candidate(world, 2) as two:
        term = await one.win()
        image = await commit(term, MetadataImage(), *BEGUN)
        backup = world.cluster.back_up()
        await commit(term, image, NextProducerId(1_000))
        follower = MetadataReader(world.client(), world.keys)
        await follower.catch_up()
        world.cluster.restore(backup)
        other = await two.win(Leader(1, "", "", term.revision))
        image = await commit(other, image, Lineage((LineageStart(7, 1), LineageStart(8, 2))))
        await commit(other, image, NextProducerId(1_000))
        with pytest.raises(MetadataWentBack):
            await follower.catch_up()


# ---- Several members ----


@asynchronous
async def test_calls_go_to_another_member_where_one_does_not_answer() -> None:
    async with etcd_world(3) as world, candidate(world) as one:
        term = await one.win()
        image = await commit(term, MetadataImage(), *BEGUN)
        at = world.addresses.index(one.etcd.endpoint)  # type: ignore[attr-defined]
        world.members[at]._reaches_majority = lambda: False
        image = await commit(term, image, NextProducerId(1_000))
        reader = MetadataReader(one.etcd, world.keys)
        await reader.catch_up()
        assert reader.image == image


@asynchronous
async def test_a_watch_of_a_member_that_lost_the_others_ends() -> None:
    async with etcd_world() as world:
        reader = MetadataReader(world.client(), world.keys)
        standing = await reader.catch_up()
        following = asyncio.create_task(_follow_from(reader, standing))
        await until(lambda: world.cluster._watchers, "it watches")
        world.cluster.majority(False)
        with pytest.raises(EtcdUnreachable, match="no leader"):
            await asyncio.wait_for(following, 10)
        with pytest.raises(EtcdUnreachable):
            await asyncio.wait_for(_follow_from(reader, standing), 10)


async def _follow_from(reader: MetadataReader, standing: Standing) -> None:
    async for _ in reader.follow(standing):
        pass


@asynchronous
async def test_an_etcd_that_is_not_there_is_named() -> None:
    from fencepost_controller.store.etcd.client import EtcdAccess, EtcdClient
    from fencepost_proto.transport.wire import GrpcWire

    client = EtcdClient(GrpcWire(), EtcdAccess(("127.0.0.1:1",)))
    with pytest.raises(EtcdUnreachable, match=r"etcd 127\.0\.0\.1:1"):
        await client.get(Get(b"a"))
    await client.close()


@asynchronous
async def test_what_etcd_refuses_is_said_in_its_words() -> None:
    async with etcd_world() as world:
        client = world.client()
        with pytest.raises(EtcdRefused, match="duplicate key"):
            await client.transact([], [Put(b"a", b"1"), Delete(b"a")])
        with pytest.raises(EtcdRefused, match="lease not found"):
            await client.transact([], [Put(b"a", b"1", 99)])
        assert not (await client.transact([Created(b"a", 5)], [])).succeeded
        assert not (await client.transact([Holds(b"a", b"1")], [])).succeeded


# ---- What cannot be right ----


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("version", b"nonsense", "'version' holds b'nonsense'"),
        ("version", b"1 00", "the log behind version 0 is gone"),
        ("leader", b"{}", "'leader' holds b'{}'"),
        ("epoch-base", b"-1", "'epoch-base' holds b'-1'"),
        ("snapshot", b"short", "the snapshot has 5 bytes"),
        ("snapshot", b"\x09" + bytes(60), "format 9; this program knows 1"),
    ],
)
@asynchronous
async def test_what_something_else_wrote_is_named(key: str, value: bytes, problem: str) -> None:
    async with etcd_world() as world:
        client = world.client()
        put = [Put(world.keys.prefix + key.encode(), value)]
        if key == "snapshot":
            put.append(Put(world.keys.version, layout.encode_version(Version(3, 7))))
        await client.transact([], put)
        with pytest.raises(StoreError, match=problem.replace("{", r"\{").replace("}", r"\}")):
            await MetadataReader(client, world.keys).catch_up()


def test_a_log_entry_that_was_damaged_is_refused() -> None:
    entry = layout.content(Version(3, 7), 1, b"what changed", inline=True).encode()
    assert layout.decode_content(entry, "it").data == b"what changed"
    with pytest.raises(StoreError, match="it has 12 bytes of 12, or a wrong checksum"):
        layout.decode_content(entry[:-1] + b"!", "it")
    with pytest.raises(StoreError, match="11 bytes of 12"):
        layout.decode_content(entry[:-1], "it")


def test_keys_are_in_the_order_of_versions_and_the_watch_has_the_leader_and_the_log_alone() -> None:
    keys = Keys(b"/p/")
    start, end = keys.watched
    watched = [keys.leader, keys.log(0), keys.log(9), keys.log(10), keys.log(10**19)]
    assert watched == sorted(watched)
    assert all(start <= key < end for key in watched)
    others = [
        keys.version,
        keys.snapshot,
        keys.epoch_base,
        keys.piece(b"image", 3, 1, 0),
        keys.piece(b"parts", 3, 1, 0),
    ]
    assert not any(start <= key < end for key in others)
    assert keys.version_of(keys.log(12)) == 12
    assert keys.version_of(keys.leader) is None
    below = keys.pieces_below(b"image", 4)
    assert below[0] <= keys.piece(b"image", 3, 1, 0) < below[1] <= keys.piece(b"image", 4, 1, 0)


def test_a_broker_is_no_part_of_a_leader_key() -> None:
    broker = BrokerRegistration(1, "h:1", 1, "life", fenced=False)
    with pytest.raises(StoreError):
        layout.decode_leader(broker.key.encode(), 1, 1)
