"""The cluster itself: its id, given once."""

from __future__ import annotations

from dataclasses import dataclass

from fencepost_controller.decisions.draft import Command, Draft
from fencepost_proto.metadata import Cluster


@dataclass(frozen=True, slots=True)
class FormCluster(Command[str]):
    """At the first start. Answers the cluster's id, which is the given one only where there was none."""

    cluster_id: str

    def decide(self, draft: Draft) -> str:
        if draft.image.cluster_id:
            return draft.image.cluster_id
        draft.put(Cluster(self.cluster_id))
        return self.cluster_id
