"""What the sequencer does about an error that answers a batch: the table, as data. Pure.

`table` renders it for the docstring of `sequencer`; a test fails where the two differ, and prints the text to put there.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Final

from fencepost_proto.protocol.errors import ErrorCode

LEFT, RIGHT = 45, 73  # columns of the table's two halves


class Reaction(Enum):
    """What is done about an error. The values are the table's words."""

    OUT_OF_SEQUENCE = (
        "with an unresolved predecessor: wait, and go again behind it; else, if `committed`: delivered, offset unknown "
        "(-1); else, if certainly absent: next epoch, stamped again, no error; else: failed, may have been appended; next "
        "epoch for what follows"
    )
    TAKEN = (
        "likewise, and its sequences are *taken*: a leader would have recognised a repeat. The same for a batch with "
        "sequence 0, which a leader always accepts, at any of the errors above and below but UNKNOWN_PRODUCER_ID"
    )
    FENCED = (
        "of a named producer: it is fenced, and all that is pending fails permanently; of an anonymous one, and while a "
        "named one waits for its own next epoch: as OUT_OF_ORDER_SEQUENCE_NUMBER"
    )
    SPLIT = "split, down to one record, which fails alone"
    ALONE = "sent again in a message of its own; then as MESSAGE_TOO_LARGE"
    RETRY_A_FEW_TIMES = "retried, five times at most, then failed; next epoch for what follows"
    RETRY = "retried with the same stamp, after a backoff or a new leader"
    FAIL = "failed; next epoch for what follows"


REACTIONS: Final[Mapping[int, Reaction]] = {
    ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER: Reaction.OUT_OF_SEQUENCE,
    ErrorCode.UNKNOWN_PRODUCER_ID: Reaction.OUT_OF_SEQUENCE,
    ErrorCode.DUPLICATE_SEQUENCE_NUMBER: Reaction.TAKEN,
    ErrorCode.INVALID_PRODUCER_EPOCH: Reaction.FENCED,
    ErrorCode.PRODUCER_FENCED: Reaction.FENCED,
    ErrorCode.MESSAGE_TOO_LARGE: Reaction.SPLIT,
    ErrorCode.RECORD_LIST_TOO_LARGE: Reaction.ALONE,
    ErrorCode.CORRUPT_MESSAGE: Reaction.RETRY_A_FEW_TIMES,
    ErrorCode.UNKNOWN_SERVER_ERROR: Reaction.RETRY_A_FEW_TIMES,
}
ANY_OTHER_RETRIABLE: Final = Reaction.RETRY
ANY_OTHER: Final = Reaction.FAIL

OF_STAMPS: Final = frozenset({Reaction.OUT_OF_SEQUENCE, Reaction.TAKEN, Reaction.FENCED})  # no meaning without stamps


def table() -> str:
    """The whole table, as it stands in the docstring of `sequencer`."""
    by_reaction: dict[Reaction, list[str]] = {}
    for code, reaction in REACTIONS.items():
        by_reaction.setdefault(reaction, []).append(ErrorCode(code).name)
    rows = [
        (["answer to a batch's present attempt"], "reaction"),
        (["success"], "delivered; its predecessors are `committed`"),
        *((_with_commas(names), reaction.value) for reaction, names in by_reaction.items()),
        (["any other retriable error"], ANY_OTHER_RETRIABLE.value),
        (["any other error"], ANY_OTHER.value),
        (["no answer (broken stream, new leader)"], "the attempt stays open; sent again on the next route"),
        (["delivery timeout"], ANY_OTHER.value),
    ]
    rule = f"{'=' * LEFT}  {'=' * RIGHT}"
    head, *body = ["\n".join(_lines(left, right)) for left, right in rows]
    return "\n".join([rule, head, rule, *body, rule])


def _with_commas(names: list[str]) -> list[str]:
    return [f"{name}," for name in names[:-1]] + names[-1:]


def _lines(left: list[str], right: str) -> Iterable[str]:
    """One row: the left words one a line, the right ones wrapped beside them."""
    wrapped = textwrap.wrap(right, RIGHT)
    for number in range(max(len(left), len(wrapped))):
        word = left[number] if number < len(left) else ""
        yield f"{word:{LEFT}}  {wrapped[number] if number < len(wrapped) else ''}".rstrip()
