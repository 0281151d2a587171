"""The order in which each sender sent its records, compared with the order in which they stand in one partition."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

EntryT = TypeVar("EntryT")


class SendOrder(Generic[EntryT]):
    """Enter every record of one partition in the order of offsets."""

    __slots__ = ("_last",)

    def __init__(self) -> None:
        self._last: dict[Hashable, tuple[int, EntryT]] = {}  # of each sender: when it was sent, and what it is

    def enter_record(self, sender: Hashable, sent: int, entry: EntryT) -> EntryT | None:
        """`sent`: the record's place in the order of sending. Returns what stands before it and was sent later.

        That is the sender's last record in the partition; None where the order is right.
        """
        before = self._last.get(sender)
        self._last[sender] = sent, entry
        return before[1] if before is not None and before[0] > sent else None
