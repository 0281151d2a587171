"""How an image keeps the entities of one kind, and what it derives from them to look them up by.

An index works on the fields of an image by their names, and changes them through `Copies`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from operator import attrgetter
from typing import Any, Generic, TypeVar, cast

from fencepost_proto.protocol.entity import Entity
from fencepost_proto.protocol.metadata.entities import RETIRED_EPOCH, NamedProducer, Partition, PartitionKey, Topic

E = TypeVar("E", bound=Entity)
Image = TypeVar("Image")


class Copies(Generic[Image]):
    """An image being changed. Each of its mappings is copied once, at its first change, however many changes follow."""

    def __init__(self, image: Image) -> None:
        self.image = image  # as changed so far; for reading, and only until the next change
        self._copied: dict[str, dict[Any, Any]] = {}
        self._copied_inner: set[tuple[str, object]] = set()

    def mapping(self, field: str) -> dict[Any, Any]:
        """Our own copy of the mapping that is this field of the image."""
        copied = self._copied.get(field)
        if copied is None:
            copied = self._copied[field] = dict(getattr(self.image, field))
            self.set(field, copied)
        return copied

    def inner_mapping(self, field: str, key: object) -> dict[Any, Any]:
        """Our own copy of the mapping that this field has under `key`: an empty one where it has none."""
        outer = self.mapping(field)
        if (field, key) not in self._copied_inner:
            self._copied_inner.add((field, key))
            outer[key] = dict(outer.get(key, {}))
        return cast("dict[Any, Any]", outer[key])

    def set(self, field: str, value: object) -> None:
        self.image = replace(cast("Any", self.image), **{field: value})


class Index(ABC, Generic[E]):
    """Where the entities of one kind are in the image."""

    @abstractmethod
    def put(self, copies: Copies[Any], entity: E) -> E | None:
        """Returns the entity that was there before."""

    @abstractmethod
    def delete(self, copies: Copies[Any], name: str) -> E | None:
        """`name`: its key behind the kind's. Returns the entity that was there. Raises ValueError for a bad name."""

    @abstractmethod
    def entities(self, image: object) -> Iterable[E]:
        """All of the kind, in an order in which they can be put."""


class Single(Index[E]):
    """The one entity of its kind is a field of the image, and cannot be deleted."""

    def __init__(self, field: str, absent: E) -> None:
        self._field = field
        self._absent = absent  # the field's value until there is one

    def put(self, copies: Copies[Any], entity: E) -> E | None:
        before = cast("E", getattr(copies.image, self._field))
        copies.set(self._field, entity)
        return None if before == self._absent else before

    def delete(self, copies: Copies[Any], name: str) -> E | None:
        raise ValueError(f"the metadata's {self._field!r} cannot be deleted")

    def entities(self, image: object) -> Iterable[E]:
        entity = cast("E", getattr(image, self._field))
        return () if entity == self._absent else (entity,)


class ById(Index[E]):
    """A mapping from ids is a field of the image."""

    def __init__(self, field: str, id_attribute: str, parse_id: Callable[[str], object] = str) -> None:
        self._field = field
        self._id_of: Callable[[E], object] = attrgetter(id_attribute)
        self._parse_id = parse_id  # from a key; raises ValueError

    def put(self, copies: Copies[Any], entity: E) -> E | None:
        mapping, entity_id = copies.mapping(self._field), self._id_of(entity)
        before = cast("E | None", mapping.get(entity_id))
        mapping[entity_id] = entity
        return before

    def delete(self, copies: Copies[Any], name: str) -> E | None:
        return cast("E | None", copies.mapping(self._field).pop(self._parse_id(name), None))

    def entities(self, image: object) -> Iterable[E]:
        return cast("Mapping[object, E]", getattr(image, self._field)).values()


class Topics(ById[Topic]):
    """By id; and ids by name."""

    def __init__(self) -> None:
        super().__init__("topics", "topic_id")

    def put(self, copies: Copies[Any], entity: Topic) -> Topic | None:
        copies.mapping("topic_ids")[entity.name] = entity.topic_id
        return super().put(copies, entity)

    def delete(self, copies: Copies[Any], name: str) -> Topic | None:
        topic = super().delete(copies, name)
        ids = copies.mapping("topic_ids")
        if topic is not None and ids.get(topic.name) == name:
            del ids[topic.name]
        return topic


def parse_partition_key(name: str) -> PartitionKey:
    topic_id, _, index = name.rpartition("/")
    return topic_id, int(index)


class Partitions(ById[Partition]):
    """By topic id and index; and which of them each broker hosts."""

    def __init__(self) -> None:
        super().__init__("partitions", "id", parse_partition_key)

    def put(self, copies: Copies[Any], entity: Partition) -> Partition | None:
        partitions, key = copies.mapping("partitions"), entity.id
        before = cast("Partition | None", partitions.get(key))
        partitions[key] = entity
        if before is None or before.replicas != entity.replicas:
            _host(copies, key, before.replicas if before is not None else (), entity.replicas)
        return before

    def delete(self, copies: Copies[Any], name: str) -> Partition | None:
        partition = super().delete(copies, name)
        if partition is not None:
            _host(copies, partition.id, partition.replicas, ())
        return partition


def _host(copies: Copies[Any], key: PartitionKey, before: tuple[int, ...], after: tuple[int, ...]) -> None:
    for broker_id in before:
        if broker_id not in after:
            copies.inner_mapping("hosted", broker_id).pop(key, None)
    for broker_id in after:
        copies.inner_mapping("hosted", broker_id)[key] = None


class NamedProducers(Index[NamedProducer]):
    """By name, those whose ids are forgotten apart from the others; and the epochs that fence the ids of these."""

    def put(self, copies: Copies[Any], entity: NamedProducer) -> NamedProducer | None:
        before = self.delete(copies, entity.name)
        copies.mapping("expired_producers" if entity.expired else "producers")[entity.name] = entity
        if not entity.expired:  # else its id is one that no name has
            fences = copies.mapping("fences")
            fences[entity.producer_id] = entity.epoch
            fences.update(dict.fromkeys(entity.retired_ids, RETIRED_EPOCH))
        return before

    def delete(self, copies: Copies[Any], name: str) -> NamedProducer | None:
        expired = cast("NamedProducer | None", copies.mapping("expired_producers").pop(name, None))
        known = cast("NamedProducer | None", copies.mapping("producers").pop(name, None))
        if known is not None:
            fences = copies.mapping("fences")
            for producer_id in (known.producer_id, *known.retired_ids):
                fences.pop(producer_id, None)
        return known or expired

    def entities(self, image: object) -> Iterable[NamedProducer]:
        for field in ("producers", "expired_producers"):
            yield from cast("Mapping[str, NamedProducer]", getattr(image, field)).values()
