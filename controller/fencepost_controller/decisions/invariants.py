"""What must hold after every decision. A decision that breaks one is not committed, and the controller stops.

Only what the decision touches is checked, so the cost is that of the change, except where a broker has just been fenced:
then no partition of which it has a replica may still have it as leader, or in sync beside one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from fencepost_proto.protocol.errors import InvariantBroken
from fencepost_proto.protocol.features import ELIGIBLE_REPLICAS
from fencepost_proto.protocol.metadata import (
    FIRST_NAMED_ID,
    NO_LEADER,
    BrokerRegistration,
    Changes,
    Entity,
    MetadataImage,
    NamedProducer,
    NextProducerId,
    Partition,
    Topic,
)


def check_invariants(before: Mapping[str, Entity | None], after: MetadataImage, version: int, changes: Changes) -> None:
    """`before`: the entities that changed, as they were; `version`: what the image `after` will be committed at.

    Raises InvariantBroken naming what is wrong.
    """
    for key, entity in changes.items():
        was = before[key]
        match entity:
            case Partition():
                _check_partition(was if isinstance(was, Partition) else None, entity, after)
            case BrokerRegistration():
                _check_broker(was if isinstance(was, BrokerRegistration) else None, entity, after, version)
            case NamedProducer():
                _check_producer(was if isinstance(was, NamedProducer) else None, entity, after)
            case NextProducerId():
                _check_next_ids(was if isinstance(was, NextProducerId) else NextProducerId(0), entity)
            case Topic():
                _require(after.topic_ids.get(entity.name) == entity.topic_id, key, f"name {entity.name!r} is another's")
            case None:
                _check_deleted(key, after)
            case _:
                pass


def check_image(image: MetadataImage) -> None:
    """The same for everything at once: an image that has just been loaded. Raises InvariantBroken."""
    for partition in image.partitions.values():
        _check_partition(None, partition, image)
    for broker in image.brokers.values():
        _check_broker(None, broker, image, image.version)
    for producer in (*image.producers.values(), *image.expired_producers.values()):
        _check_producer(None, producer, image)


def _require(condition: bool, key: str, text: str) -> None:
    if not condition:
        raise InvariantBroken(f"{key}: {text}")


def _check_partition(before: Partition | None, p: Partition, after: MetadataImage) -> None:
    """One line for each rule; the text is made only where it is broken, for a broker's death checks thousands."""
    if problem := _problem_of(before, p, after):
        raise InvariantBroken(f"{p.key}: {problem}")


def _problem_of(before: Partition | None, p: Partition, after: MetadataImage) -> str:
    """Empty: none."""
    replicas, isr = set(p.replicas), set(p.isr)
    if not len(replicas) == len(p.replicas) > 0:
        return f"replicas {p.replicas}"
    if len(isr) != len(p.isr):
        return f"in-sync set {p.isr} names a broker twice"
    if not isr <= replicas:
        return f"in-sync set {p.isr} is not within replicas {p.replicas}"
    if not set(p.adding) | set(p.removing) <= replicas:
        return f"{p.adding=} {p.removing=} {p.replicas=}"
    if set(p.adding) & set(p.removing):
        return f"both added and removed: {p.adding=} {p.removing=}"
    if p.topic_id not in after.topics:
        return "its topic is not there"
    if not 0 <= p.deleted_in_epoch <= max(p.leader_epoch, 0) or p.deleted_end_offset < 0:
        return f"{p.deleted_end_offset=} {p.deleted_in_epoch=} at leader epoch {p.leader_epoch}"
    if p.leader != NO_LEADER and p.last_known_isr:
        return f"{p.last_known_isr=} beside leader {p.leader}"
    problem = _problem_of_brokers(p, after) or (_problem_of_eligible(p, after) if p.eligible else "")
    if problem or before is None:
        return problem
    return _problem_of_epochs(before, p) or _problem_of_electable(before, p)


def _problem_of_eligible(p: Partition, after: MetadataImage) -> str:
    eligible, needed = set(p.eligible), after.topics[p.topic_id].config.min_insync_replicas
    if len(eligible) != len(p.eligible) or not eligible <= set(p.replicas):
        return f"eligible {p.eligible} of replicas {p.replicas}"
    if eligible & set(p.isr):
        return f"both in sync and eligible: {p.isr=} {p.eligible=}"
    if not eligible <= after.brokers.keys():
        return f"eligible {p.eligible}, of whom some are not registered"
    may_lead = (after.brokers[b] for b in (*p.isr, *p.eligible) if b in after.brokers)
    if old := [b.id for b in may_lead if b.feature_level < ELIGIBLE_REPLICAS]:
        return f"eligible {p.eligible}, and {old} would commit without them"
    if p.leader != NO_LEADER and len(p.isr) >= needed:
        return f"eligible {p.eligible} beside leader {p.leader}, which commits with {p.isr} ({needed} are needed)"
    return ""


def _problem_of_electable(before: Partition, p: Partition) -> str:
    """Who holds all that is committed still did before; others come in sync by a leader's proposal, or an operator."""
    held = {*before.isr, *before.eligible}
    if not held.issuperset(p.eligible):
        return f"eligible {p.eligible}, of whom some were not among {sorted(held)}"
    if before.leader != NO_LEADER or held.issuperset(p.isr):
        return ""
    unclean = p.isr == (p.leader,) and not p.eligible
    return "" if unclean else f"in sync {p.isr} under leader {p.leader}, of whom some were not among {sorted(held)}"


def _problem_of_brokers(p: Partition, after: MetadataImage) -> str:
    if p.leader != NO_LEADER:
        broker = after.brokers.get(p.leader)
        if p.leader not in p.isr:
            return f"leader {p.leader} is not in the in-sync set {p.isr}"
        if broker is None or broker.fenced:
            return f"leader {p.leader} is not live"
    for member in p.isr:
        broker = after.brokers.get(member)
        if broker is None:
            return f"in-sync member {member} is not registered"
        if broker.fenced and p.leader != NO_LEADER:
            return f"fenced member {member} beside leader {p.leader} in {p.isr}"
    return ""


def _problem_of_epochs(before: Partition, p: Partition) -> str:
    if p.partition_epoch <= before.partition_epoch:
        return f"partition epoch stays {p.partition_epoch}"
    if p.leader_epoch < before.leader_epoch:
        return f"leader epoch falls to {p.leader_epoch}"
    changed = p.leader != before.leader or not set(before.replicas) <= set(p.replicas)
    if changed and p.leader_epoch == before.leader_epoch:
        return f"leader epoch stays {p.leader_epoch}"
    deleted = (p.deleted_in_epoch, p.deleted_end_offset)
    if deleted < (before.deleted_in_epoch, before.deleted_end_offset):
        return f"deleted records go back to {p.deleted_end_offset} of epoch {p.deleted_in_epoch}"
    return ""


def _check_broker(
    before: BrokerRegistration | None, broker: BrokerRegistration, after: MetadataImage, version: int
) -> None:
    _require(0 < broker.broker_epoch <= version, broker.key, f"broker epoch {broker.broker_epoch}")
    _require(0 <= broker.served_epoch <= broker.broker_epoch, broker.key, f"served epoch {broker.served_epoch}")
    if before is not None:
        _require(broker.served_epoch >= before.served_epoch, broker.key, f"served epoch falls to {broker.served_epoch}")
        _require(broker.broker_epoch >= before.broker_epoch, broker.key, f"broker epoch falls to {broker.broker_epoch}")
        same = broker.incarnation == before.incarnation
        _require(same == (broker.broker_epoch == before.broker_epoch), broker.key, "an epoch is of one incarnation")
    if broker.fenced:
        hosted = (after.partitions[key] for key in after.hosted_by(broker.id))
        led = [p.key for p in hosted if p.leader != NO_LEADER and broker.id in p.isr]
        _require(not led, broker.key, f"fenced, and in sync beside a leader for {led[:3]}")


def _check_deleted(key: str, after: MetadataImage) -> None:
    kind, _, name = key.partition("/")
    if kind == "brokers":
        held = [after.partitions[key].key for key in after.hosted_by(int(name))]
        _require(not held, key, f"not registered any more, and a replica of {held[:3]}")


def _check_next_ids(before: NextProducerId, after: NextProducerId) -> None:
    _require(after.next_id >= before.next_id, after.key, f"next producer id goes to {after.next_id}")
    _require(after.next_id <= FIRST_NAMED_ID, after.key, f"next producer id {after.next_id} is a named producer's")
    _require(after.next_named_id >= before.next_named_id, after.key, f"next named id goes to {after.next_named_id}")
    _require(after.names_clock_ms >= before.names_clock_ms, after.key, f"clock of names at {after.names_clock_ms} ms")


def _check_producer(before: NamedProducer | None, producer: NamedProducer, after: MetadataImage) -> None:
    is_allocated = FIRST_NAMED_ID <= producer.producer_id < after.next_ids.next_named_id
    _require(is_allocated, producer.key, f"id {producer.producer_id} is not allocated")
    _require(producer.producer_id not in producer.retired_ids, producer.key, f"id {producer.producer_id} is retired")
    if before is None:
        return
    if producer.producer_id != before.producer_id:
        is_over = before.expired or before.producer_id in producer.retired_ids
        _require(is_over, producer.key, f"id {before.producer_id} is neither retired nor expired")
        _require(producer.producer_id > before.producer_id, producer.key, f"id {producer.producer_id} is older")
    elif producer.epoch == before.epoch:
        of_its_use = replace(before, used_at_ms=producer.used_at_ms, expired=producer.expired)
        _require(producer == of_its_use, producer.key, f"epoch {before.epoch} is followed by itself")
        _require(not before.expired or producer.expired, producer.key, f"expired id {before.producer_id} comes back")
    else:
        _require(producer.epoch > before.epoch, producer.key, f"epoch {before.epoch} is followed by {producer.epoch}")
        _require(not before.expired, producer.key, f"expired id {before.producer_id} comes back")
