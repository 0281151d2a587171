"""Cluster metadata as this broker's clients see it: the newest image, and every change as it is applied here.

Clients do not see named producers, producer-id blocks and the controller's lineages: there can be very many, and no
client needs another's. Nor do they see the incarnations of brokers: a client that knows one can register in that broker's
place. A watcher that does not keep up is not waited for: its queue is dropped and it gets one fresh image instead.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace

from fencepost_proto.protocol.metadata import ClusterIdentity, Entity, MetadataImage, encode_delta
from fencepost_proto.protocol.v1 import common_pb2

MAX_QUEUED_DELTAS = 64  # of one watcher
KEEP_ALIVE_S = 1.0  # a watcher gets a message from its broker at least this often

_HIDDEN_KINDS = ("producer", "next_producer_id", "lineage")


def client_image(image: MetadataImage, topic_names: Collection[str] = ()) -> common_pb2.MetadataDelta:
    """The image as one delta, without what clients do not see; with topic names, only those topics."""
    entities: list[Entity] = [
        *([ClusterIdentity(image.cluster_id)] if image.cluster_id else []),
        *(replace(broker, incarnation="") for broker in image.brokers.values()),
    ]
    if topic_names:
        ids = [topic_id for name in topic_names if (topic_id := image.topic_ids.get(name)) is not None]
        entities += [image.topics[topic_id] for topic_id in ids]
        entities += [partition for topic_id in ids for partition in image.partitions_of(topic_id)]
    else:
        entities += image.topics.values()
        entities += image.partitions.values()
    return common_pb2.MetadataDelta.FromString(encode_delta(image.version, entities, image=True))


def client_delta(delta: common_pb2.MetadataDelta) -> common_pb2.MetadataDelta:
    """The delta without what clients do not see; it may become empty, but every version is sent."""
    if delta.image:
        return common_pb2.MetadataDelta(version=delta.version, image=True)  # a watcher gets `client_image` for it
    hidden, brokers = [], []  # places among what has changed
    for place, entity in enumerate(delta.changed):
        kind = entity.WhichOneof("kind")
        if kind in _HIDDEN_KINDS:
            hidden.append(place)
        elif kind == "broker":
            brokers.append(place)
    hides_keys = any(key.startswith("producers/") for key in delta.deleted_keys)
    if not (hidden or brokers or hides_keys):
        return delta
    visible = common_pb2.MetadataDelta()
    visible.CopyFrom(delta)  # as a whole: a version may change thousands of partitions beside one broker
    for place in brokers:
        visible.changed[place].broker.incarnation = ""
    for first, last in reversed(_runs(hidden)):
        del visible.changed[first : last + 1]
    if hides_keys:
        kept = [key for key in delta.deleted_keys if not key.startswith("producers/")]
        del visible.deleted_keys[:]
        visible.deleted_keys.extend(kept)
    return visible


def _runs(places: list[int]) -> list[tuple[int, int]]:
    """First and last of each run of neighbours; `places` rise."""
    runs: list[tuple[int, int]] = []
    for place in places:
        if runs and runs[-1][1] == place - 1:
            runs[-1] = (runs[-1][0], place)
        else:
            runs.append((place, place))
    return runs


class MetadataFeed:
    """Takes each image from the session; serves those who ask once and those who watch."""

    def __init__(self) -> None:
        self.image = MetadataImage()
        self.closed = False
        self._known = asyncio.Event()
        self._client_image: common_pb2.MetadataDelta | None = None  # of `image`; made when someone asks for it
        self._watchers: dict[Watcher, None] = {}
        self._next_image: asyncio.Future[None] | None = None  # where someone waits for one

    def publish(self, image: MetadataImage, delta: common_pb2.MetadataDelta) -> None:
        """`image` is now applied here; `delta` made it of the one before, or is all of it."""
        if image.version != self.image.version:  # a new session begins with an image that we may have
            self._client_image = None
            if self._watchers:
                visible = client_delta(delta)
                for watcher in self._watchers:
                    watcher.offer(visible)
        self.image = image
        self._known.set()
        self.look_again()

    def look_again(self) -> None:
        """What is waited for in `wait_until` may hold now."""
        if self._next_image is not None:
            self._next_image.set_result(None)
            self._next_image = None

    def client_image(self) -> common_pb2.MetadataDelta:
        """The newest image for clients: one message for all who ask for it, not to be changed by anyone."""
        if self._client_image is None:
            self._client_image = client_image(self.image)
        return self._client_image

    @property
    def is_known(self) -> bool:
        """There is an image."""
        return self._known.is_set()

    async def wait_known(self, timeout_s: float | None = None) -> bool:
        """Wait for the first image; False where it has not come in time, or the feed is closed."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._known.wait()
        except TimeoutError:
            return False
        return not self.closed

    async def wait_until(self, holds: Callable[[MetadataImage], bool], timeout_s: float) -> bool:
        """Wait for an image of which `holds` is true; False where none has come in time, or the feed is closed."""
        try:
            async with asyncio.timeout(timeout_s):
                while not holds(self.image):
                    if self.closed:
                        return False
                    if self._next_image is None:
                        self._next_image = asyncio.get_running_loop().create_future()
                    await asyncio.shield(self._next_image)
        except TimeoutError:
            return holds(self.image)
        return True

    @contextmanager
    def watch(self) -> Iterator[Watcher]:
        """A watcher that begins with the present image."""
        watcher = Watcher(self)
        self._watchers[watcher] = None
        try:
            yield watcher
        finally:
            del self._watchers[watcher]

    def close(self) -> None:
        """Every watcher's stream ends."""
        self.closed = True
        self._known.set()
        self.look_again()
        for watcher in self._watchers:
            watcher.wake()


class Watcher:
    """One client's place in the feed."""

    def __init__(self, feed: MetadataFeed) -> None:
        self._feed = feed
        self._queue: deque[common_pb2.MetadataDelta] = deque()
        self._needs_image = True
        self._news = asyncio.Event()
        self._news.set()

    def offer(self, delta: common_pb2.MetadataDelta) -> None:
        if delta.image or len(self._queue) >= MAX_QUEUED_DELTAS:
            self._queue.clear()
            self._needs_image = True
        elif not self._needs_image:
            self._queue.append(delta)
        self._news.set()

    def wake(self) -> None:
        self._news.set()

    async def next(self) -> common_pb2.MetadataDelta | None:
        """The next thing to send: an image, a change, or after a while without either an empty change at the present
        version. None: the feed is closed."""
        if not self._queue:
            try:
                async with asyncio.timeout(KEEP_ALIVE_S):
                    await self._news.wait()
            except TimeoutError:
                if not self._news.is_set():  # news may come in the very step in which the time is up
                    return common_pb2.MetadataDelta(version=self._feed.image.version)
        if self._feed.closed:
            return None
        if self._needs_image:
            self._needs_image = False
            self._news.clear()
            return self._feed.client_image()
        delta = self._queue.popleft()
        if not self._queue:
            self._news.clear()
        return delta
