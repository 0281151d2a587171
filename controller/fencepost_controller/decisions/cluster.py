"""The cluster itself: its id, given once, and the lineage that each start of the controller begins."""

from __future__ import annotations

from dataclasses import dataclass

from fencepost_controller.decisions.draft import Command, Draft
from fencepost_proto.protocol.lineage import UNKNOWN_LINEAGE
from fencepost_proto.protocol.metadata import ClusterIdentity


@dataclass(frozen=True, slots=True)
class FormCluster(Command[str]):
    """The controller starts. Answers the cluster's id, which is the given one only where there was none."""

    cluster_id: str
    lineage_id: int = UNKNOWN_LINEAGE  # random; unknown: this is no start

    def decide(self, draft: Draft) -> str:
        if self.lineage_id != UNKNOWN_LINEAGE:
            draft.put(draft.image.lineage.begin(self.lineage_id, draft.version))
        if draft.image.cluster_id:
            return draft.image.cluster_id
        draft.put(ClusterIdentity(self.cluster_id))
        return self.cluster_id
