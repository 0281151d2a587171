"""Which fences a broker says it has applied: before that it does not tell what a named producer's predecessors wrote."""

from __future__ import annotations

import pytest

from fencepost_node.producers.identities import check_fence_stands
from fencepost_proto.protocol.errors import CoordinatorNotAvailable, InvalidProducerEpoch, InvalidRequest
from fencepost_proto.protocol.metadata import (
    FIRST_NAMED_ID,
    RETIRED_EPOCH,
    MetadataImage,
    NamedProducer,
    NextProducerId,
)

USED_UP, OLDER, NOW, NEXT = range(FIRST_NAMED_ID + 1, FIRST_NAMED_ID + 5)
LOADER = NamedProducer("loader", NOW, 3, retired_ids=(USED_UP,))
IDS = NextProducerId(1_000, NEXT)
IMAGE = MetadataImage().with_changes(7, {LOADER.key: LOADER, IDS.key: IDS})


@pytest.mark.parametrize(("producer_id", "epoch"), [(NOW, 3), (NOW, 2), (USED_UP, RETIRED_EPOCH)])
def test_a_fence_that_is_applied_stands(producer_id: int, epoch: int) -> None:
    check_fence_stands(producer_id, epoch, IMAGE)


@pytest.mark.parametrize(("producer_id", "epoch"), [(NOW, 4), (NOW, RETIRED_EPOCH), (NEXT, 0)])
def test_what_newer_metadata_may_tell_is_to_be_asked_again(producer_id: int, epoch: int) -> None:
    with pytest.raises(CoordinatorNotAvailable, match=f"{producer_id}.*version 7"):
        check_fence_stands(producer_id, epoch, IMAGE)


@pytest.mark.parametrize("epoch", [0, RETIRED_EPOCH])
def test_an_id_that_no_name_has_any_more_is_refused_for_good(epoch: int) -> None:
    """No newer metadata will ever know it: whoever waited for that would wait in vain."""
    with pytest.raises(InvalidProducerEpoch, match=f"{OLDER} any more"):
        check_fence_stands(OLDER, epoch, IMAGE)


def test_an_anonymous_producer_has_no_fence() -> None:
    with pytest.raises(InvalidRequest, match="producer id 5 is not a named"):
        check_fence_stands(5, 0, IMAGE)
