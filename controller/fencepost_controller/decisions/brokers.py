"""Brokers come and go: registration, fencing, unfencing, controlled shutdown, replicas whose disk failed.

A broker's **incarnation** is one run of its process; its **broker epoch** is the metadata version that registered that
incarnation, and every request carries it (KIP-903). The same incarnation registering again, after a broken stream or a
restart of the controller, keeps its epoch, its standing and its leaderships.

A **new incarnation** is registered fenced: whatever the one before it led gets a new leader, and it leaves every in-sync
set but those of which no one else serves. It stays eligible as any other that leaves (`partitions.py`). Where its log is not
what it was, it is neither in sync nor eligible any more:

- its machine restarted without a clean shutdown: every topic that acknowledges before the disk has synced;
- its data folder is new (no cluster id, though this broker id was registered before): every topic;
- its data folder is an older one, put back, or a copy: every topic;
- it found a log damaged below its end, or gone: that partition.

The in-sync set may become empty by that. Then the partition waits for an eligible replica; where there is none, it stays
offline until an operator commands an unclean election: a shorter log never becomes the committed one silently (KIP-966).
`last_known_isr` remembers who held everything.

**Is the folder an older one?** A broker writes the epoch of its registration to its data folder before it does anything
under it, and reports it at its next registration. The controller keeps the newest epoch under which the broker was unfenced
(`served_epoch`): only an unfenced broker leads, or is counted for a high watermark. A folder with an earlier epoch lacks
what was acknowledged since. One with that epoch or a later one lacks nothing, also where the broker was killed before it
had written the epoch of a registration that the controller knows: it was not unfenced under it. Of two copies with the
same epoch, of which one was used since, the broker sees the other by itself (`folder_is_copy`).

A **fenced** broker leads nothing, and is in no in-sync set but one of which no one serves any more. It is unfenced when it
says that it is ready and has applied the metadata that its session began with; offline partitions that waited for it, or for
any of several, get it as leader.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fencepost_controller.decisions.draft import Command, Draft
from fencepost_controller.decisions.partitions import recompute, recompute_all_of
from fencepost_proto.protocol.control_characters import control_character
from fencepost_proto.protocol.errors import (
    BrokerIdNotRegistered,
    DuplicateBrokerRegistration,
    InconsistentClusterId,
    InvalidRequest,
)
from fencepost_proto.protocol.features import FIRST, NEWEST
from fencepost_proto.protocol.metadata import BrokerRegistration, MetadataImage, PartitionKey
from fencepost_proto.runtime.config import address_problem, is_wildcard_address

MAX_BROKERS = 1_000
MAX_ADDRESS_LENGTH = 255
MAX_INCARNATION_LENGTH = 64
MAX_NAMED = 3  # partitions in one error message
NO_EPOCH = 0  # below every broker epoch: there was no registration


@dataclass(frozen=True, slots=True)
class RegisterBroker(Command[BrokerRegistration]):
    """A session begins. Answers the broker as registered."""

    broker_id: int
    incarnation: str
    cluster_id: str  # empty: the data folder is new
    address: str
    replaces: int = NO_EPOCH  # broker epoch of the registration that was found dead; another one is not replaced
    may_have_lost_tail: bool = False
    damaged: tuple[PartitionKey, ...] = ()
    folder_epoch: int = NO_EPOCH  # of the last registration that the data folder knows of
    folder_is_copy: bool = False
    kafka_address: str = ""  # empty: it serves no Kafka clients
    feature_level: int = NEWEST

    def decide(self, draft: Draft) -> BrokerRegistration:
        self.check(draft.image)
        known = draft.broker(self.broker_id)
        if known is not None and known.incarnation == self.incarnation:
            broker = replace(
                known, address=self.address, kafka_address=self.kafka_address, feature_level=self.feature_level
            )
            if broker != known:
                draft.put(broker)
            return broker
        if known is not None and known.broker_epoch != self.replaces:
            raise DuplicateBrokerRegistration(f"broker id {self.broker_id} is in use by the process at {known.address}")
        served_epoch = known.served_epoch if known is not None else NO_EPOCH
        broker = BrokerRegistration(
            self.broker_id,
            self.address,
            draft.version,
            self.incarnation,
            fenced=True,
            served_epoch=served_epoch,
            kafka_address=self.kafka_address,
            feature_level=self.feature_level,
        )
        draft.put(broker)
        recompute_all_of(draft, self.broker_id)
        if known is not None:
            self._leave_where_data_may_be_missing(draft, known)
        return broker

    def folder_problem(self, known: BrokerRegistration) -> str:
        """Why any log of the data folder may lack records that this broker has acknowledged; empty: none does."""
        if not self.cluster_id:
            return "it is new"
        if self.folder_is_copy:
            return "it is a copy, made while the broker was running"
        if self.folder_epoch < known.served_epoch:
            return f"it is of broker epoch {self.folder_epoch}, and the broker has served under {known.served_epoch}"
        return ""

    def tells_of_loss(self, known: BrokerRegistration) -> bool:
        """Whether it may cost the broker its place in in-sync sets that it is in."""
        if known.incarnation == self.incarnation:
            return False
        return bool(self.folder_problem(known) or self.may_have_lost_tail or self.damaged)

    def check(self, image: MetadataImage) -> None:
        """Raises what refuses it, whichever process holds the id."""
        if self.cluster_id and self.cluster_id != image.cluster_id:
            raise InconsistentClusterId(
                f"broker {self.broker_id} belongs to cluster {self.cluster_id!r}; this is {image.cluster_id!r}"
            )
        if self.broker_id < 0:
            raise InvalidRequest(f"broker id {self.broker_id} is negative")
        if self.feature_level < FIRST:
            raise InvalidRequest(f"feature level {self.feature_level} is negative")
        if not 0 < len(self.incarnation) <= MAX_INCARNATION_LENGTH:
            raise InvalidRequest(f"incarnation of {len(self.incarnation)} characters; 1 to {MAX_INCARNATION_LENGTH}")
        if control_character(self.incarnation):
            raise InvalidRequest(f"incarnation {self.incarnation!r} holds a control character")
        _check_address(self.address)
        if self.kafka_address:
            _check_address(self.kafka_address)
        if self.broker_id not in image.brokers and len(image.brokers) >= MAX_BROKERS:
            raise InvalidRequest(f"broker {self.broker_id} would be one more than {MAX_BROKERS}")

    def _leave_where_data_may_be_missing(self, draft: Draft, known: BrokerRegistration) -> None:
        """After `recompute`, this broker is in sync only where no one else serves, and eligible where too few are."""
        all_suspect = bool(self.folder_problem(known))
        damaged = frozenset(self.damaged)
        for partition in draft.partitions_electing(self.broker_id):
            synced = draft.image.topics[partition.topic_id].is_synced
            if all_suspect or (self.may_have_lost_tail and not synced) or partition.id in damaged:
                recompute(draft, partition, lost=(self.broker_id,))


def _check_address(address: str) -> None:
    """Raises InvalidRequest for one that no one could connect to."""
    if len(address) > MAX_ADDRESS_LENGTH:
        raise InvalidRequest(f"address of {len(address)} characters; at most {MAX_ADDRESS_LENGTH} are allowed")
    if problem := address_problem(address):
        raise InvalidRequest(f"address {address!r}: {problem}")
    if is_wildcard_address(address):
        raise InvalidRequest(f"address {address!r}: no one can connect to it")


@dataclass(frozen=True, slots=True)
class UnregisterBroker(Command[None]):
    """Forget a broker that does not come back: its id and its place among MAX_BROKERS are free again."""

    broker_id: int

    def decide(self, draft: Draft) -> None:
        """Raises BrokerIdNotRegistered, or InvalidRequest where it is live or still holds replicas."""
        broker = draft.broker(self.broker_id)
        if broker is None:
            raise BrokerIdNotRegistered(f"broker {self.broker_id} is not registered")
        if not broker.fenced:
            raise InvalidRequest(f"broker {self.broker_id} is live: shut it down before it is removed")
        held = sorted(draft.partitions_on(self.broker_id), key=lambda p: p.id)
        if held:
            names = ", ".join(f"{draft.image.topics[p.topic_id].name}-{p.index}" for p in held[:MAX_NAMED])
            more = f" and {len(held) - MAX_NAMED} more" if len(held) > MAX_NAMED else ""
            raise InvalidRequest(f"broker {self.broker_id} still holds replicas of {names}{more}: move them first")
        draft.delete(broker)


@dataclass(frozen=True, slots=True)
class FenceBroker(Command[bool]):
    """A broker is dead, or has announced its end. The answer: whether this changes anything."""

    broker_id: int
    broker_epoch: int  # a later incarnation is not meant

    def decide(self, draft: Draft) -> bool:
        broker = draft.broker(self.broker_id)
        if broker is None or broker.broker_epoch != self.broker_epoch or broker.fenced:
            return False
        draft.put(replace(broker, fenced=True))
        recompute_all_of(draft, self.broker_id)
        return True


@dataclass(frozen=True, slots=True)
class UnfenceBroker(Command[bool]):
    """A broker is ready: logs recovered, metadata applied. The answer: whether this changes anything."""

    broker_id: int
    broker_epoch: int

    def decide(self, draft: Draft) -> bool:
        broker = draft.check_broker_epoch(self.broker_id, self.broker_epoch)
        if not broker.fenced or broker.shutting_down:
            return False
        draft.put(replace(broker, fenced=False, served_epoch=broker.broker_epoch))
        recompute_all_of(draft, self.broker_id)
        return True


@dataclass(frozen=True, slots=True)
class BeginShutdown(Command[bool]):
    """A broker wants to stop: its leaderships go to others, and it leaves in-sync sets. The answer: whether this
    changes anything."""

    broker_id: int
    broker_epoch: int

    def decide(self, draft: Draft) -> bool:
        broker = draft.check_broker_epoch(self.broker_id, self.broker_epoch)
        if broker.shutting_down:
            return False
        draft.put(replace(broker, shutting_down=True))
        recompute_all_of(draft, self.broker_id)
        return True


@dataclass(frozen=True, slots=True)
class FailReplicas(Command[None]):
    """A broker's set of failed replicas has changed: it is as good as dead for those that its disk refuses, and serves those
    again that it has recovered."""

    broker_id: int
    broker_epoch: int

    def decide(self, draft: Draft) -> None:
        draft.check_broker_epoch(self.broker_id, self.broker_epoch)
        recompute_all_of(draft, self.broker_id)
