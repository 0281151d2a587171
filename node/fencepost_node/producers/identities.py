"""Which producer ids and epochs a leader accepts, by the metadata that it has applied. Pure.

The controller gives out every producer id, and every epoch of a named producer; an anonymous producer takes its next epochs
by itself. What was not given out is refused: a client that wrote under the ids that come next would have their later owners'
batches taken for repeats, acknowledged and not stored (G2).

    id of a name, epoch below the one given last    InvalidProducerEpoch (by `ProducerState.check`, from the answer here)
    id of a name, epoch above it                    CoordinatorNotAvailable
    id from the named range, and no name has it     InvalidProducerEpoch: its name has expired or was removed
    id that has not been allocated                  CoordinatorNotAvailable
    any other id                                    accepted

CoordinatorNotAvailable is a definite refusal of this attempt, and retriable: the id or epoch may have been given out a
moment ago, in metadata that this broker has not applied yet. The two rules about epochs together say: **a leader that
accepts a batch of a named producer's epoch has applied the metadata that fences the older ones.** The fence of a partition
that had no leader when the epoch was given rests on that (`decisions/fence.py` of the controller).

Named producers' ids are a range of their own. So an id whose name is forgotten is distinguished from an anonymous one
without any memory of it, and stays refused permanently.
"""

from __future__ import annotations

from fencepost_proto.protocol.errors import CoordinatorNotAvailable, InvalidProducerEpoch, InvalidRequest
from fencepost_proto.protocol.metadata import FIRST_NAMED_ID, MetadataImage


def lowest_epoch(producer_id: int, epoch: int, image: MetadataImage) -> int:
    """The lowest epoch that this producer id may still write under. Raises CoordinatorNotAvailable, InvalidProducerEpoch."""
    fence = image.fences.get(producer_id)
    if fence is not None:
        if epoch > fence:
            raise CoordinatorNotAvailable(
                f"epoch {epoch} of named producer id {producer_id} has not been given out: {fence} is the newest at "
                f"metadata version {image.version}"
            )
        return fence
    is_named = producer_id >= FIRST_NAMED_ID
    allocated_below = image.next_ids.next_named_id if is_named else image.next_ids.next_id
    if producer_id >= allocated_below:
        if not image.version and not image.next_ids.next_id:
            return 0  # no metadata at all: a leader has some
        raise CoordinatorNotAvailable(
            f"producer id {producer_id} has not been allocated: {allocated_below} is the next one at metadata version "
            f"{image.version}"
        )
    if is_named:
        raise InvalidProducerEpoch(f"the name of producer id {producer_id} has expired or was removed")
    return 0


def check_fence_stands(producer_id: int, epoch: int, image: MetadataImage) -> None:
    """Return where this broker lets nothing below `epoch` of a named producer in any more: it has applied that fence.

    Raises CoordinatorNotAvailable where it may still apply it, InvalidProducerEpoch for an id that no name has any more: it
    is refused permanently, and what it wrote may be forgotten. InvalidRequest for an id that is no named producer's.
    """
    fence = image.fences.get(producer_id)
    if fence is None and producer_id < FIRST_NAMED_ID:
        raise InvalidRequest(f"producer id {producer_id} is not a named producer's: it has no fence")
    if fence is None and producer_id < image.next_ids.next_named_id:
        raise InvalidProducerEpoch(
            f"no name has producer id {producer_id} any more: the name has expired, was removed, or has used up "
            f"another id since"
        )
    if fence is None or fence < epoch:
        newest = "none" if fence is None else str(fence)
        raise CoordinatorNotAvailable(
            f"epoch {epoch} of producer id {producer_id} is not known here yet: {newest} is the newest at metadata version "
            f"{image.version}"
        )
