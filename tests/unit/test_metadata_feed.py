"""What a client that watches metadata is told: an image, every change, and never more than it can take."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from unittest.mock import patch

from hypothesis import given, settings
from hypothesis import strategies as st

from fencepost_node import metadata_feed
from fencepost_node.metadata_feed import MAX_QUEUED_DELTAS, MetadataFeed, Watcher, client_delta, client_image
from fencepost_proto.protocol.metadata import (
    BrokerRegistration,
    ClusterIdentity,
    Entity,
    MetadataImage,
    NamedProducer,
    NextProducerId,
    Partition,
    Topic,
    delta_to_proto,
)
from fencepost_proto.protocol.v1 import common_pb2
from tests.asynchronous import asynchronous
from tests.unit.fake_controller import run


def published(feed: MetadataFeed, version: int, *entities: Entity, image: bool = False) -> None:
    delta = delta_to_proto(version, entities, image=image)
    feed.publish(feed.image.apply(delta), delta)


async def caught_up(watcher: Watcher, known: MetadataImage, feed: MetadataFeed) -> MetadataImage:
    """A client's image after all that the watcher has for it now."""
    while known.version != feed.image.version or not known.cluster_id:
        delta = await watcher.next()
        assert delta is not None
        assert delta.image or delta.version == known.version + 1
        known = known.apply(delta)
    return known


def without_producers(image: MetadataImage) -> MetadataImage:
    return MetadataImage().apply(client_image(image))


def test_an_image_for_clients_has_everything_but_producers() -> None:
    image = MetadataImage().apply(
        delta_to_proto(
            4,
            [
                ClusterIdentity("c"),
                NextProducerId(3_000),
                NamedProducer("p", 1, 2),
                BrokerRegistration(1, "a:1", 2, "i", fenced=False),
                Topic("t", "orders"),
                Topic("u", "returns"),
                Partition("t", 0, (1,), (1,), 1, 0, 0),
                Partition("u", 0, (1,), (1,), 1, 0, 0),
            ],
            image=True,
        )
    )
    everything = client_image(image)
    assert everything.version == 4
    kinds = [entity.WhichOneof("kind") for entity in everything.changed]
    assert kinds == ["cluster", "broker", "topic", "topic", "partition", "partition"]
    one = MetadataImage().apply(client_image(image, ["returns"]))
    assert (list(one.topics), list(one.partitions)) == (["u"], [("u", 0)])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["change", "producer", "look", "image"]), max_size=200), st.integers(1, 4))
def test_a_watcher_always_arrives_at_the_brokers_image_however_slow_it_is(steps: list[str], queue: int) -> None:
    async def test() -> None:
        feed = MetadataFeed()
        published(feed, 1, ClusterIdentity("c"), image=True)
        known = MetadataImage()
        with feed.watch() as watcher:
            for number, step in enumerate(steps):
                version = feed.image.version + 1
                if step == "change":
                    published(feed, version, Topic(f"t{number}", f"topic-{number}"))
                elif step == "producer":
                    published(feed, version, NamedProducer(f"p{number}", number, 0))
                elif step == "image":
                    published(feed, version + 3, ClusterIdentity("c"), Topic("x", "only"), image=True)
                else:
                    known = await caught_up(watcher, known, feed)
            known = await caught_up(watcher, known, feed)
        assert known == without_producers(feed.image)
        assert not known.producers

    with patch.object(metadata_feed, "MAX_QUEUED_DELTAS", queue):
        run(test())


@asynchronous
async def test_a_slow_watcher_holds_a_bounded_queue_and_gets_a_fresh_image() -> None:
    feed = MetadataFeed()
    published(feed, 1, ClusterIdentity("c"), image=True)
    with feed.watch() as watcher:
        assert (await watcher.next()) is not None
        for version in range(2, MAX_QUEUED_DELTAS + 50):
            published(feed, version, Topic(f"t{version}", f"topic-{version}"))
        delta = await watcher.next()
        assert delta is not None
        assert delta.image
        assert delta.version == feed.image.version


@asynchronous
async def test_silence_is_broken_by_an_empty_change_at_the_present_version() -> None:
    feed = MetadataFeed()
    published(feed, 9, ClusterIdentity("c"), image=True)
    with patch.object(metadata_feed, "KEEP_ALIVE_S", 0.01), feed.watch() as watcher:
        assert (await watcher.next()) is not None
        assert await watcher.next() == common_pb2.MetadataDelta(version=9)
        assert await watcher.next() == common_pb2.MetadataDelta(version=9)


@asynchronous
async def test_an_image_that_is_already_known_is_not_sent_again() -> None:
    feed = MetadataFeed()
    published(feed, 9, ClusterIdentity("c"), image=True)
    with patch.object(metadata_feed, "KEEP_ALIVE_S", 0.01), feed.watch() as watcher:
        assert (await watcher.next()) is not None
        published(feed, 9, ClusterIdentity("c"), image=True)  # a new session begins with it
        assert await watcher.next() == common_pb2.MetadataDelta(version=9)


@asynchronous
async def test_watchers_and_those_that_wait_end_when_the_feed_is_closed() -> None:
    empty = MetadataFeed()
    waiting = asyncio.create_task(empty.wait_known())
    feed = MetadataFeed()
    published(feed, 1, ClusterIdentity("c"), image=True)
    with feed.watch() as watcher:
        assert (await watcher.next()) is not None
        following = asyncio.create_task(watcher.next())
        await asyncio.sleep(0)
        feed.close()
        empty.close()
        assert await following is None
        assert not await waiting


@given(
    st.lists(st.sampled_from("bpnit"), max_size=12), st.lists(st.sampled_from(["producers/x", "topics/T"]), max_size=3)
)
def test_a_change_is_sent_without_what_clients_do_not_see_and_in_its_order(kinds: list[str], gone: list[str]) -> None:
    entities: list[Entity] = []
    for number, kind in enumerate(kinds):
        of_kind: dict[str, Entity] = {
            "b": BrokerRegistration(number, "h:1", 7, "secret", False),
            "p": Partition("T", number, (1,), (1,), 1, 0, 0),
            "n": NamedProducer(f"name-{number}", number, 1),
            "i": NextProducerId(number),
            "t": Topic(f"T{number}", f"topic-{number}"),
        }
        entities.append(of_kind[kind])
    delta = delta_to_proto(3, entities)
    delta.deleted_keys.extend(gone)
    before = delta.SerializeToString()
    shown: list[Entity] = []
    for entity in entities:
        if isinstance(entity, BrokerRegistration):
            shown.append(replace(entity, incarnation=""))
        elif not isinstance(entity, NamedProducer | NextProducerId):
            shown.append(entity)
    wanted = delta_to_proto(3, shown)
    wanted.deleted_keys.extend(key for key in gone if not key.startswith("producers/"))
    assert client_delta(delta) == wanted
    assert delta.SerializeToString() == before, "the broker's own is as it was"
