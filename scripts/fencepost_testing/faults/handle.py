"""A fault that was set: how often it has fired, and how it is taken back."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self

from fencepost_testing.faults.board import Board
from fencepost_testing.faults.rules import Ended, Posted
from fencepost_testing.waiting import until, until_sync

FIRED_TIMEOUT_S: Final = 10.0


class FaultHandle:
    """One fault. As a context manager it is removed at the block's end."""

    def __init__(self, board: Board, posted: Posted | Ended, undo: Callable[[Posted], None]) -> None:
        """`undo`: what is to be done outside of the board, once it was removed there."""
        self._board = board
        self._posted = posted
        self._undo = undo

    @property
    def id(self) -> str:
        """By which commands and HTTP name it."""
        return self._posted.id

    @property
    def description(self) -> str:
        """What it does to what, in a line."""
        return self._posted.description

    @property
    def fired(self) -> int:
        """How often it has fired so far, in all processes; also after its removal."""
        return self._board.count(self.id)

    @property
    def is_set(self) -> bool:
        """Not removed yet."""
        return any(posted.id == self.id for posted in self._board.posted())

    def remove(self) -> int:
        """Take it back; how often it has fired. Nothing happens where it was removed before."""
        was_set, fired = self.is_set, self._board.remove(self.id)
        if was_set and isinstance(self._posted, Posted):
            self._undo(self._posted)
        return fired

    def wait_fired(self, times: int = 1, timeout_s: float = FIRED_TIMEOUT_S) -> int:
        """Return once it has fired that often. Raises NotInTime."""
        return until_sync(
            lambda: self.fired, f"{self} has fired {times} times", timeout_s, holds=lambda fired: fired >= times
        )

    async def wait_fired_async(self, times: int = 1, timeout_s: float = FIRED_TIMEOUT_S) -> int:
        """As `wait_fired`, for code in an event loop."""
        return await until(
            lambda: self.fired, f"{self} has fired {times} times", timeout_s, holds=lambda fired: fired >= times
        )

    def to_json(self) -> dict[str, Any]:
        """What commands and HTTP show of it."""
        return {"id": self.id, "fault": self.description, "fired": self.fired, "set": self.is_set}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def __str__(self) -> str:
        return f"fault {self.id} ({self.description})"

    def __repr__(self) -> str:
        return f"<{self}>"
