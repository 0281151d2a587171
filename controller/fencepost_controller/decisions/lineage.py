"""Is this store the one that committed what brokers were told?

Each start of the controller begins a lineage of metadata versions (`fencepost_proto.lineage`). A broker tells at its
registration the newest version that it knows of, and its lineage. Where this store does not have that version, it has
gone back: its folder was put back from a backup, or is new in the place of one that was lost. What it says next would
take back what was promised: ids and epochs would be given out twice, and topics that it does not know would be gone. So it
serves nobody (`MetadataWentBack` ends the process), until `fencepost controller recover` has made it the newest again.

What cannot be seen: a store that goes back and that no broker with a newer version ever meets; and a fork that is older
than the last `MAX_LINEAGES` starts.
"""

from __future__ import annotations

from fencepost_proto.lineage import VersionCheck
from fencepost_proto.metadata import MetadataImage

WHAT_TO_DO = "nobody is served; 'fencepost controller recover' makes the store whole from what the brokers hold"


class MetadataWentBack(Exception):
    """The store does not have what a broker was told of. Ends the process."""


def check_known_version(image: MetadataImage, broker_id: int, cluster_id: str, version: int, lineage_id: int) -> None:
    """What a broker says that it knows, when it registers. Raises MetadataWentBack."""
    if not image.brokers and cluster_id and cluster_id != image.cluster_id:
        raise MetadataWentBack(
            f"this controller's store is new: no broker was ever registered in it, and broker {broker_id} belongs to "
            f"cluster {cluster_id} and knows its metadata version {version}: {WHAT_TO_DO}"
        )
    if cluster_id != image.cluster_id:
        return  # refused for that, or new
    match image.lineage.check(version, lineage_id, image.version):
        case VersionCheck.AHEAD:
            raise MetadataWentBack(
                f"this controller's store has gone back: it is at metadata version {image.version}, and broker {broker_id} "
                f"was told of version {version}: {WHAT_TO_DO}"
            )
        case VersionCheck.FORKED:
            raise MetadataWentBack(
                f"this controller's store has gone back: broker {broker_id} was told of metadata version {version} of "
                f"lineage {lineage_id:016x}, which in this store is another one, of lineage "
                f"{image.lineage.id_at(version):016x}: {WHAT_TO_DO}"
            )
        case VersionCheck.SOUND:
            return
