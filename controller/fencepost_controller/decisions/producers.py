"""Who may produce under which id and epoch.

**Blocks of ids** go to brokers for anonymous producers. `next_producer_id` moves on in the same commit that hands a block
out, so what has been handed out is never handed out again (G8); a block that a dying broker did not use up is lost, and
there are enough.

**A named producer** has one id, and an epoch that says which instance of it is the current one.

- An instance that starts knows neither (-1, -1): it takes over. Epoch + 1, and every older instance is fenced.
- An instance that recovers from an error gives the id and epoch that it holds (KIP-360): epoch + 1, but only where they are
  still the current ones. Otherwise another instance has taken over, and this one is the one to stop: PRODUCER_FENCED.
- A *repeated* request of that second kind, because its answer was lost, finds epoch + 1 current already. It gets that epoch
  again where the last change was the holder's own (`bumped_by_holder`). After a take-over the flag is down and the answer
  is PRODUCER_FENCED. Without the flag both cases would look the same. The epoch below can have had only one holder, so
  no one else can get the repeated answer.
- A take-over that is repeated simply takes over once more: no one learned of the epoch in between.

An id whose last epoch (32,767) is used up is retired: every epoch of it is refused permanently, and the name goes on under a
new id from epoch 0.

**Names expire** when they have not been used for a time. A use is a take-over, a new epoch, or a `KeepName`, which every
running instance sends many times in that time, whether it produces or not: so a name is lost only by an instance that is
gone, or has been out of the controller's reach for all of it. Time is the controller's running time, committed in coarse
steps (`names_clock_ms`): neither a step of the clock on the wall nor a controller that was away makes a name expire.

Ids of named producers are a range of their own, and no id of it is ever given out twice. A broker refuses every id of the
range that no name has. So an id whose name has expired or was removed needs no memory to stay fenced: an instance that comes
back after that can append nothing, whatever the name does meanwhile (G9). The name itself is remembered for longer, while
there is room among all names: the next one to take it gets a new id, and the answer says that its predecessor has expired.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice

from fencepost_controller.decisions.draft import Command, Draft
from fencepost_proto.protocol.errors import InvalidRequest, ProducerFenced
from fencepost_proto.protocol.metadata import FIRST_NAMED_ID, NamedProducer
from fencepost_proto.protocol.record_batch import MAX_EPOCH

ID_BLOCK_SIZE = 1_000
MAX_PRODUCER_ID = 2**63 - 1
MAX_PRODUCER_NAME_BYTES = 249
MAX_EXPIRED_AT_ONCE = 1_000  # names, by one command: the others are for the next one
NONE = -1  # in place of an id and an epoch: this instance holds none


def _take_named_id(draft: Draft) -> int:
    """An id that no producer has had."""
    ids = draft.image.next_ids
    if ids.next_named_id >= MAX_PRODUCER_ID:
        raise InvalidRequest(f"ids of named producers are used up: {ids.next_named_id} is next")
    draft.put(replace(ids, next_named_id=ids.next_named_id + 1))
    return ids.next_named_id


def predecessor(producer: NamedProducer) -> tuple[int, bool]:
    """The id that the name had before, 0: none is known; and whether what it wrote under earlier ones is forgotten."""
    newest = max(producer.retired_ids, default=0)
    return newest, producer.predecessor_expired or len(producer.retired_ids) > 1


@dataclass(frozen=True, slots=True)
class AllocateProducerIds(Command[range]):
    broker_id: int
    broker_epoch: int

    def decide(self, draft: Draft) -> range:
        draft.check_broker_epoch(self.broker_id, self.broker_epoch)
        ids = draft.image.next_ids
        block = range(ids.next_id, ids.next_id + ID_BLOCK_SIZE)
        if block.stop > FIRST_NAMED_ID:
            raise InvalidRequest(f"ids of anonymous producers are used up: {ids.next_id} are allocated")
        draft.put(replace(ids, next_id=block.stop))
        return block


@dataclass(frozen=True, slots=True)
class InitProducer(Command[NamedProducer]):
    name: str
    producer_id: int = NONE
    producer_epoch: int = NONE
    max_names: int = 20_000

    def decide(self, draft: Draft) -> NamedProducer:
        _check_name(self.name)
        self._check_held()
        known = draft.image.producers.get(self.name)
        takes_over = self.producer_id == NONE
        if known is None:
            producer = self._new(draft, takes_over)
        elif takes_over or (known.producer_id, known.epoch) == (self.producer_id, self.producer_epoch):
            producer = self._next(draft, known, bumped_by_holder=not takes_over)
        elif known.bumped_by_holder and self._held_the_epoch_before(known):
            return known
        else:
            raise _fenced(known, self.producer_id, self.producer_epoch)
        draft.put(producer)
        return producer

    def _check_held(self) -> None:
        none = (self.producer_id == NONE, self.producer_epoch == NONE)
        held = self.producer_id >= 0 and 0 <= self.producer_epoch <= MAX_EPOCH
        if none != (True, True) and not held:
            raise InvalidRequest(
                f"producer {self.name!r}: id {self.producer_id} with epoch {self.producer_epoch}: both held, or both -1"
            )

    def _new(self, draft: Draft, takes_over: bool) -> NamedProducer:
        if not takes_over:
            raise _unknown(self.name, self.producer_id, self.producer_epoch)
        if len(draft.image.producers) >= self.max_names:
            raise InvalidRequest(
                f"producer {self.name!r} would be one more than {self.max_names} names (max_producer_names): names that "
                f"are not used expire; 'fencepost producer-name list' and 'remove' show and remove them"
            )
        expired = draft.image.expired_producers
        if self.name not in expired and len(draft.image.producers) + len(expired) >= self.max_names:
            draft.delete(next(iter(expired.values())))  # the one that expired first, as far as this process knows
        return NamedProducer(
            self.name,
            _take_named_id(draft),
            epoch=0,
            used_at_ms=draft.image.next_ids.names_clock_ms,
            predecessor_expired=self.name in draft.image.expired_producers,
        )

    def _next(self, draft: Draft, known: NamedProducer, bumped_by_holder: bool) -> NamedProducer:
        used = replace(known, bumped_by_holder=bumped_by_holder, used_at_ms=draft.image.next_ids.names_clock_ms)
        if known.epoch < MAX_EPOCH:
            return replace(used, epoch=known.epoch + 1)
        return replace(
            used,
            producer_id=_take_named_id(draft),
            epoch=0,
            retired_ids=(known.producer_id,),  # the ones before it are ids that no name has
            predecessor_expired=known.predecessor_expired or bool(known.retired_ids),
        )

    def _held_the_epoch_before(self, known: NamedProducer) -> bool:
        if known.epoch > 0:
            return (self.producer_id, self.producer_epoch) == (known.producer_id, known.epoch - 1)
        return known.retired_ids[-1:] == (self.producer_id,) and self.producer_epoch == MAX_EPOCH


@dataclass(frozen=True, slots=True)
class KeepName(Command[NamedProducer]):
    """An instance runs and holds this id and epoch. Raises ProducerFenced where they are not the current ones."""

    name: str
    producer_id: int
    producer_epoch: int

    def decide(self, draft: Draft) -> NamedProducer:
        known = draft.image.producers.get(self.name)
        if known is None:
            raise _unknown(self.name, self.producer_id, self.producer_epoch)
        if (known.producer_id, known.epoch) != (self.producer_id, self.producer_epoch):
            raise _fenced(known, self.producer_id, self.producer_epoch)
        if known.used_at_ms == draft.image.next_ids.names_clock_ms:
            return known  # used since the clock's last step: nothing to commit
        known = replace(known, used_at_ms=draft.image.next_ids.names_clock_ms)
        draft.put(known)
        return known


@dataclass(frozen=True, slots=True)
class ExpireNames(Command[int]):
    """The controller has run for `elapsed_ms` since the last one. The answer: how many names have expired."""

    elapsed_ms: int
    expiration_ms: int
    max_names: int  # those that are remembered as expired included

    def decide(self, draft: Draft) -> int:
        ids = draft.image.next_ids
        now_ms = ids.names_clock_ms + self.elapsed_ms
        draft.put(replace(ids, names_clock_ms=now_ms))
        # A use is stamped with the clock's last step before it, so a name may be younger than it looks by a step.
        unused_since = now_ms - self.expiration_ms - self.elapsed_ms
        idle = [producer for producer in draft.image.producers.values() if producer.used_at_ms <= unused_since]
        idle.sort(key=lambda producer: producer.used_at_ms)
        expired = [replace(producer, expired=True) for producer in idle[:MAX_EXPIRED_AT_ONCE]]
        for producer in expired:
            draft.put(producer)
        remembered = draft.image.expired_producers
        surplus = len(draft.image.producers) + len(remembered) - self.max_names  # where the setting was lowered
        for producer in islice(remembered.values(), min(max(surplus, 0), MAX_EXPIRED_AT_ONCE)):
            draft.delete(producer)
        return len(expired)


@dataclass(frozen=True, slots=True)
class RemoveName(Command[None]):
    """Forget a name, and fence the producer that still holds it."""

    name: str

    def decide(self, draft: Draft) -> None:
        known = draft.image.producers.get(self.name) or draft.image.expired_producers.get(self.name)
        if known is None:
            raise InvalidRequest(f"producer name {self.name!r} is not known")
        draft.delete(known)


def _check_name(name: str) -> None:
    size = len(name.encode())
    if not 0 < size <= MAX_PRODUCER_NAME_BYTES:
        raise InvalidRequest(f"producer name of {size} bytes; 1 to {MAX_PRODUCER_NAME_BYTES} are allowed")
    if not name.isprintable():
        raise InvalidRequest(f"producer name {name!r} has characters that cannot be printed")


def _fenced(known: NamedProducer, producer_id: int, epoch: int) -> ProducerFenced:
    return ProducerFenced(
        f"producer {known.name!r}: id {producer_id} epoch {epoch} is not the current one "
        f"(id {known.producer_id} epoch {known.epoch}): another instance has taken over"
    )


def _unknown(name: str, producer_id: int, epoch: int) -> ProducerFenced:
    return ProducerFenced(
        f"producer {name!r}: id {producer_id} epoch {epoch} is not known: the name has expired or was removed"
    )
