"""Several images of one cluster's metadata: which of them hold, and what was removed since.

*Sources* are the images of all brokers, and the store as it is. One whose newest version another one has in its own history
is an ancestor of that, and adds nothing. A start of the controller changes nothing but the lineage, so the versions
that only starts made do not count: a store that was put back from a backup and started is an ancestor still. The others are
*heads*: one, or several where a store that had gone back has served some brokers.

A store that brokers contradict and that no broker follows is no head: what it has decided since its backup took effect
nowhere, and what it had from before, the brokers' newer metadata has too, or has removed.

*Two heads part* at the newest version that both have. What a head has from that version or before, and another head lacks,
was removed there since. So a topic carries the version that created it, and a broker the version of its registration.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from fencepost_proto.protocol.lineage import UNKNOWN_LINEAGE, LineageStart, VersionCheck
from fencepost_proto.protocol.metadata import BrokerRegistration, MetadataImage, Topic

NOT_KNOWN = 0  # in place of a version: no image that was made before versions were kept has one


@dataclass(frozen=True, slots=True)
class Heard:
    """A version of the metadata that a broker knows."""

    version: int
    lineage_id: int


class Histories:
    """`store`: also one of `sources`, where it was ever used. `heard`: by brokers."""

    def __init__(self, store: MetadataImage, sources: Sequence[MetadataImage], heard: Collection[Heard]) -> None:
        self.sources = [image for image in sources if image.version]
        self._store = store
        self._unheard = False  # the store parts from what brokers have, and no broker follows it
        self.heads = self._followed(heads(self.sources), heard)  # the newest first

    def _followed(self, found: list[MetadataImage], heard: Collection[Heard]) -> list[MetadataImage]:
        others = [head for head in found if head is not self._store]
        if not others or len(others) == len(found):
            return found
        parted = max(parting(self._store, other) for other in others)
        if parted == NOT_KNOWN:
            return found
        told = [one for one in heard if one.version > parted and one.lineage_id != UNKNOWN_LINEAGE]
        if any(_has(self._store, one.version, one.lineage_id) for one in told):
            return found
        self._unheard = True
        return others

    def brokers(self) -> dict[int, BrokerRegistration]:
        """Those of the heads, each from the newest that has it, without those that were removed and have no replica."""
        known = {broker_id: broker for image in reversed(self.heads) for broker_id, broker in image.brokers.items()}
        return {broker_id: known[broker_id] for broker_id in known if not self._is_broker_removed(known[broker_id])}

    def _is_broker_removed(self, broker: BrokerRegistration) -> bool:
        if any(head.hosted_by(broker.id) for head in self.heads):
            return False
        return self._is_removed(broker.broker_epoch, lambda head: broker.id in head.brokers)

    def was_removed(self, topic_id: str) -> bool:
        """Was a topic that a source knows deleted since, or created where no broker knows it?"""
        topic = self.topic(topic_id)
        return topic is not None and self._is_removed(topic.created_version, lambda head: topic_id in head.topics)

    def is_unheard(self, topic_id: str) -> bool:
        """Was it created by a store that had gone back, and no broker knows it?"""
        topic = self._store.topics.get(topic_id) if self._unheard else None
        if topic is None or any(topic_id in head.topics for head in self.heads):
            return False
        return topic.created_version > max(parting(self._store, head) for head in self.heads)

    def topic(self, topic_id: str) -> Topic | None:
        """From the newest source that knows it."""
        return next(
            (image.topics[topic_id] for image in (*self.heads, *self.sources) if topic_id in image.topics), None
        )

    def _is_removed(self, since: int, is_in: Callable[[MetadataImage], bool]) -> bool:
        """`since`: the version with which it came into being."""
        having = [head for head in self.heads if is_in(head)]
        lacking = [head for head in self.heads if not is_in(head)]
        return not having or any(NOT_KNOWN < since <= parting(one, other) for one in having for other in lacking)


def heads(sources: Sequence[MetadataImage]) -> list[MetadataImage]:
    """Those that are in no other one's history, the newest first."""
    found: list[MetadataImage] = []
    for image in sorted(sources, key=lambda image: (-_last_change(image), -image.version)):
        version = _last_change(image)
        if not any(_has(head, version, image.lineage.id_at(version)) for head in found):
            found.append(image)
    return sorted(found, key=lambda image: -image.version)


def parting(one: MetadataImage, other: MetadataImage) -> int:
    """The newest version that both have; NOT_KNOWN where their lineages do not show it."""
    ends = {start.lineage_id: end for start, end in _lineages(other)}
    for start, end in reversed(_lineages(one)):
        if start.lineage_id in ends:
            return min(end, ends[start.lineage_id])
    return NOT_KNOWN


def _lineages(image: MetadataImage) -> list[tuple[LineageStart, int]]:
    """With the last version of each."""
    starts = image.lineage.starts
    lasts = [*(start.first_version - 1 for start in starts[1:]), image.version]
    return list(zip(starts, lasts, strict=True)) if starts else []


def _last_change(image: MetadataImage) -> int:
    """Its version, without those at its end that only starts of the controller made."""
    version = image.version
    # Not the first one: a recovery's, which makes everything, or the cluster's.
    for start in reversed(image.lineage.starts[1:]):
        if start.first_version != version:
            break
        version -= 1
    return version


def _has(image: MetadataImage, version: int, lineage_id: int) -> bool:
    return image.lineage.check(version, lineage_id, image.version) is VersionCheck.SOUND
