"""Checks that this store is the one that committed the metadata that brokers know.

Each start of the controller begins a lineage of metadata versions (`protocol.lineage`). At its registration a
broker reports the newest version that it knows, and its lineage. Where this store does not have that version, it has
gone back: its folder was put back from a backup, or is new in the place of one that was lost. What it publishes next would
revoke what was promised: ids and epochs would be given out twice, and topics that it does not know would be gone. So it
serves no one (`MetadataWentBack` ends the process), until `fencepost controller recover` has made it the newest again.

A broker is believed only where it shows that it holds a part of this cluster's history: an id of one of the starts that this
store knows too, its own version's or the oldest that it holds. A copy of a store shares those with the store of which it is
a copy. The ids are random, and no client is shown them; the cluster's id and versions are. A broker that shows none of
them is refused (`UnknownHistory`), and the controller goes on.

What cannot be seen: a store that goes back and that no broker with a newer version ever meets; and a fork that is older
than the last `MAX_LINEAGES` starts.
"""

from __future__ import annotations

from dataclasses import dataclass

from fencepost_proto.protocol.errors import InvalidRequest
from fencepost_proto.protocol.lineage import UNKNOWN_LINEAGE, VersionCheck
from fencepost_proto.protocol.metadata import MetadataImage

WHAT_TO_DO = "no one is served; 'fencepost controller recover' makes the store whole from what the brokers hold"


class UnknownHistory(InvalidRequest):
    """A broker reports a version that this store does not have, and no lineage that it has."""


class MetadataWentBack(Exception):
    """The store does not have a version that a broker knows. Ends the process."""


@dataclass(frozen=True, slots=True)
class KnownHistory:
    """What a broker reports at its registration."""

    broker_id: int
    cluster_id: str
    version: int = 0
    lineage_id: int = UNKNOWN_LINEAGE  # of that version
    oldest_lineage_id: int = UNKNOWN_LINEAGE  # the first of the history that it holds


def check_known_version(image: MetadataImage, known: KnownHistory) -> None:
    """Raises MetadataWentBack; UnknownHistory where what would show that is not to be believed."""
    broker_id, version, lineage_id = known.broker_id, known.version, known.lineage_id
    if not image.brokers and known.cluster_id and known.cluster_id != image.cluster_id:
        raise MetadataWentBack(
            f"this controller's store is new: no broker was ever registered in it, and broker {broker_id} belongs to "
            f"cluster {known.cluster_id} and knows its metadata version {version}: {WHAT_TO_DO}"
        )
    if known.cluster_id != image.cluster_id:
        return  # refused for that, or new
    found = image.lineage.check(version, lineage_id, image.version)
    if found is VersionCheck.SOUND:
        return
    if not (image.lineage.knows(lineage_id) or image.lineage.knows(known.oldest_lineage_id)):
        raise UnknownHistory(
            f"broker {broker_id} says that it knows metadata version {version} of lineage {lineage_id:016x}, and this "
            f"store, at version {image.version}, knows none of its lineages: it is not believed"
        )
    if found is VersionCheck.AHEAD:
        raise MetadataWentBack(
            f"this controller's store has gone back: it is at metadata version {image.version}, and broker {broker_id} "
            f"knows version {version}: {WHAT_TO_DO}"
        )
    raise MetadataWentBack(
        f"this controller's store has gone back: broker {broker_id} knows metadata version {version} of "
        f"lineage {lineage_id:016x}, which in this store is another one, of lineage "
        f"{image.lineage.id_at(version):016x}: {WHAT_TO_DO}"
    )
