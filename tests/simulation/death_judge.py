"""Whether a broker that was declared dead gave a reason to. A wrong verdict costs an election and loses nothing, so no other
judge sees it.

A broker is *well* while it runs, sound, and nothing is wrong with the way to the controller, nor with that one. The
controller may take it for dead only where it was not well within the last session timeout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from fencepost_proto.protocol.metadata import MetadataImage

LOOKED_EVERY_S = 0.25  # what is over sooner is not seen, and no reason for a death


class Deaths:
    """`incarnation_of`: of the process of a broker that is well; empty: it is not."""

    def __init__(self, session_timeout_s: float, incarnation_of: Callable[[int], str]) -> None:
        self._within_s = session_timeout_s - 2 * LOOKED_EVERY_S
        self._incarnation_of = incarnation_of
        self._well_since: dict[int, tuple[str, float]] = {}  # by broker: the process, and since when

    def look(self, broker_id: int, now: float) -> None:
        """Call every `LOOKED_EVERY_S`."""
        incarnation = self._incarnation_of(broker_id)
        if not incarnation:
            self._well_since.pop(broker_id, None)
        elif self._well_since.get(broker_id, ("", 0.0))[0] != incarnation:
            self._well_since[broker_id] = (incarnation, now)

    def judged(self, before: MetadataImage, image: MetadataImage, now: float) -> Iterator[str]:
        """The controller has committed this. Of each death in it: why it had no cause; empty:
        it may have had one."""
        for broker_id, broker in image.brokers.items():
            was = before.brokers.get(broker_id)
            incarnation, since = self._well_since.get(broker_id, ("", now))
            if was is None or was.fenced or not broker.fenced or was.incarnation != broker.incarnation:
                continue
            is_well = broker.incarnation == incarnation == self._incarnation_of(broker_id)
            if is_well and now - since >= self._within_s:
                yield f"broker {broker_id} is declared dead, and was well since {since:.3f}"
            else:
                yield ""
