"""Those who wait until the fence of a named producer stands everywhere (G9). The rule is in `decisions/fence.py`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from fencepost_controller.decisions.fence import standing
from fencepost_proto.protocol.errors import CoordinatorNotAvailable, FencepostError
from fencepost_proto.protocol.metadata import MetadataImage

MAX_WAITING = 1_024


class Fences:
    """The waiting callers, each with the metadata version that is to stand."""

    def __init__(self, image: Callable[[], MetadataImage], applied: Callable[[], Mapping[int, int]]) -> None:
        self._image = image
        self._applied = applied
        self._waiting: dict[asyncio.Future[None], int] = {}
        self._closed: FencepostError | None = None

    def check(self) -> None:
        """The image has changed, or a broker has applied more of it."""
        if not self._waiting:
            return
        stands = standing(self._image(), self._applied()).version
        for future, version in self._waiting.items():
            if version <= stands and not future.done():
                future.set_result(None)

    async def wait(self, version: int, timeout_s: float) -> None:
        """Return once `version` stands everywhere. Raises CoordinatorNotAvailable naming what it waited for, or what
        `close` was given: also to a caller whose epoch is committed already and who begins to wait only now."""
        if self._closed is not None:
            raise self._closed
        if len(self._waiting) >= MAX_WAITING:
            raise CoordinatorNotAvailable(f"{MAX_WAITING} producers wait for their fences already")
        future = asyncio.get_running_loop().create_future()
        self._waiting[future] = version
        self.check()
        try:
            async with asyncio.timeout(timeout_s):
                await future
        except TimeoutError:
            why = standing(self._image(), self._applied()).why_not()
            raise CoordinatorNotAvailable(f"not everywhere in force after {timeout_s * 1000:.0f} ms: {why}") from None
        finally:
            del self._waiting[future]

    def close(self, error: FencepostError) -> None:
        """No one waits any longer, and no one begins to."""
        self._closed = error
        for future in self._waiting:
            if not future.done():
                future.set_exception(error)
