"""Those who wait until the fence of a named producer stands everywhere (G9). The rule is in `decisions/fence.py`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from fencepost_controller.decisions.fence import standing
from fencepost_proto.errors import CoordinatorNotAvailable, FencepostError, NotController
from fencepost_proto.metadata import MetadataImage

MAX_WAITING = 1_024


class Fences:
    """The waiting callers, each with the metadata version that is to stand."""

    def __init__(self, image: Callable[[], MetadataImage], applied: Callable[[], Mapping[int, int]]) -> None:
        self._image = image
        self._applied = applied
        self._waiting: dict[asyncio.Future[None], int] = {}

    def check(self) -> None:
        """The image has changed, or a broker has applied more of it."""
        if not self._waiting:
            return
        stands = standing(self._image(), self._applied()).version
        for future, version in self._waiting.items():
            if version <= stands and not future.done():
                future.set_result(None)

    async def wait(self, version: int, timeout_s: float) -> None:
        """Return once `version` stands everywhere. Raises CoordinatorNotAvailable naming what it waited for."""
        if len(self._waiting) >= MAX_WAITING:
            raise CoordinatorNotAvailable(f"{MAX_WAITING} producers wait for their fences already")
        future = asyncio.get_running_loop().create_future()
        self._waiting[future] = version
        self.check()
        try:
            async with asyncio.timeout(timeout_s):
                await future
        except TimeoutError:
            image = self._image()
            why = standing(image, self._applied()).why_not(image)
            raise CoordinatorNotAvailable(f"not everywhere in force after {timeout_s * 1000:.0f} ms: {why}") from None
        finally:
            del self._waiting[future]

    def fail(self, error: FencepostError | None = None) -> None:
        """The controller stops: nobody waits any longer."""
        for future in self._waiting:
            if not future.done():
                future.set_exception(error or NotController("the controller is stopping"))
