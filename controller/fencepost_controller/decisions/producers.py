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
  nobody else can get the repeated answer.
- A take-over that is repeated simply takes over once more: nobody learned of the epoch in between.

An id whose last epoch (32,767) is used up is retired: every epoch of it is refused for good, and the name goes on under a
new id from epoch 0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fencepost_controller.decisions.brokers import check_broker_epoch
from fencepost_controller.decisions.draft import Command, Draft
from fencepost_proto.errors import InvalidRequest, ProducerFenced
from fencepost_proto.metadata import NamedProducer, NextProducerId
from fencepost_proto.record_batch import MAX_EPOCH

ID_BLOCK_SIZE = 1_000
MAX_PRODUCER_ID = 2**63 - 1
MAX_PRODUCER_NAME_BYTES = 249
MAX_NAMED_PRODUCERS = 20_000
MAX_RETIRED_IDS = 1_000  # of one name; each takes 32,768 epochs
NONE = -1  # in place of an id and an epoch: this instance holds none


def _take_ids(draft: Draft, count: int) -> int:
    """The first of `count` fresh ids."""
    first = draft.image.next_producer_id
    if first + count > MAX_PRODUCER_ID:
        raise InvalidRequest(f"producer ids are used up: {first} are allocated")
    draft.put(NextProducerId(first + count))
    return first


@dataclass(frozen=True, slots=True)
class AllocateProducerIds(Command[range]):
    broker_id: int
    broker_epoch: int

    def decide(self, draft: Draft) -> range:
        check_broker_epoch(draft, self.broker_id, self.broker_epoch)
        first = _take_ids(draft, ID_BLOCK_SIZE)
        return range(first, first + ID_BLOCK_SIZE)


@dataclass(frozen=True, slots=True)
class InitProducer(Command[NamedProducer]):
    name: str
    producer_id: int = NONE
    producer_epoch: int = NONE

    def decide(self, draft: Draft) -> NamedProducer:
        self._check()
        known = draft.image.producers.get(self.name)
        takes_over = self.producer_id == NONE
        if known is None:
            producer = self._new(draft, takes_over)
        elif takes_over or (known.producer_id, known.epoch) == (self.producer_id, self.producer_epoch):
            producer = self._next(draft, known, bumped_by_holder=not takes_over)
        elif known.bumped_by_holder and self._held_the_epoch_before(known):
            return known
        else:
            raise ProducerFenced(
                f"producer {self.name!r}: id {self.producer_id} epoch {self.producer_epoch} is not the current one "
                f"(id {known.producer_id} epoch {known.epoch}): another instance has taken over"
            )
        draft.put(producer)
        return producer

    def _check(self) -> None:
        size = len(self.name.encode())
        if not 0 < size <= MAX_PRODUCER_NAME_BYTES:
            raise InvalidRequest(f"producer name of {size} bytes; 1 to {MAX_PRODUCER_NAME_BYTES} are allowed")
        if not self.name.isprintable():
            raise InvalidRequest(f"producer name {self.name!r} has characters that cannot be printed")
        none = (self.producer_id == NONE, self.producer_epoch == NONE)
        held = self.producer_id >= 0 and 0 <= self.producer_epoch <= MAX_EPOCH
        if none != (True, True) and not held:
            raise InvalidRequest(
                f"producer {self.name!r}: id {self.producer_id} with epoch {self.producer_epoch}: both held, or both -1"
            )

    def _new(self, draft: Draft, takes_over: bool) -> NamedProducer:
        if not takes_over:
            raise ProducerFenced(
                f"producer {self.name!r}: id {self.producer_id} epoch {self.producer_epoch} is not known"
            )
        if len(draft.image.producers) >= MAX_NAMED_PRODUCERS:
            raise InvalidRequest(f"producer {self.name!r} would be one more than {MAX_NAMED_PRODUCERS} names")
        return NamedProducer(self.name, _take_ids(draft, 1), epoch=0)

    def _next(self, draft: Draft, known: NamedProducer, bumped_by_holder: bool) -> NamedProducer:
        if known.epoch < MAX_EPOCH:
            return replace(known, epoch=known.epoch + 1, bumped_by_holder=bumped_by_holder)
        if len(known.retired_ids) >= MAX_RETIRED_IDS:
            raise InvalidRequest(f"producer {self.name!r} has used up {MAX_RETIRED_IDS} ids; take another name")
        return replace(
            known,
            producer_id=_take_ids(draft, 1),
            epoch=0,
            retired_ids=(*known.retired_ids, known.producer_id),
            bumped_by_holder=bumped_by_holder,
        )

    def _held_the_epoch_before(self, known: NamedProducer) -> bool:
        if known.epoch > 0:
            return (self.producer_id, self.producer_epoch) == (known.producer_id, known.epoch - 1)
        return known.retired_ids[-1:] == (self.producer_id,) and self.producer_epoch == MAX_EPOCH
