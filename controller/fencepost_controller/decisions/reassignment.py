"""AlterPartitionReassignments: move a partition to other brokers (KIP-455).

While a reassignment is under way, `replicas` is the target followed by what is to be removed; `adding` are those of the
target that were not replicas before, `removing` those that will not be any more. It completes by itself (`partitions.py`)
when the target is in sync; until then the old replicas hold everything, so it can be changed or cancelled at any time.

- A new target while one is under way takes its place: what was being added and is not wanted any more is dropped at once.
- An empty target cancels: back to the replicas before. (Their order is then that of the cancelled target.)
- Refused where it would drop every in-sync replica, or every one that may be elected, and where fewer replicas than
  min.insync.replicas would remain.

All partitions of one request are changed, or none.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fencepost_controller.decisions.draft import Command, Draft
from fencepost_controller.decisions.partitions import recompute
from fencepost_controller.decisions.placement import check_assignment
from fencepost_proto.protocol.errors import InvalidReplicaAssignment, InvalidRequest, NoReassignmentInProgress
from fencepost_proto.protocol.metadata import Partition


@dataclass(frozen=True, slots=True)
class ReassignPartitions(Command[None]):
    topic_name: str
    targets: tuple[tuple[int, tuple[int, ...]], ...]  # (partition, replicas; empty: cancel)

    def decide(self, draft: Draft) -> None:
        indexes = [index for index, _ in self.targets]
        if not indexes or len(set(indexes)) != len(indexes):
            raise InvalidRequest(
                f"topic {self.topic_name!r}: reassignment of partitions {indexes}: each once, at least one"
            )
        for index, target in self.targets:
            partition = draft.partition_of(self.topic_name, index)
            original = tuple(b for b in partition.replicas if b not in partition.adding)
            if not target:
                if not partition.adding and not partition.removing:
                    raise NoReassignmentInProgress(f"{self.topic_name}-{index} is not being reassigned")
                self._reassign(draft, partition, original, original)
            else:
                self._reassign(draft, partition, original, target)

    def _reassign(self, draft: Draft, partition: Partition, original: tuple[int, ...], target: tuple[int, ...]) -> None:
        name = f"{self.topic_name}-{partition.index}"
        check_assignment(draft, name, target)
        min_insync = draft.image.topics[partition.topic_id].config.min_insync_replicas
        if len(target) < min_insync:
            raise InvalidReplicaAssignment(f"{name}: replicas {target} are fewer than min.insync.replicas={min_insync}")
        replicas = (*target, *(b for b in original if b not in target))
        isr = tuple(b for b in partition.isr if b in replicas)
        if partition.isr and not any(draft.serves(b, partition.id) for b in isr) and isr != partition.isr:
            raise InvalidReplicaAssignment(
                f"{name}: of its in-sync replicas {partition.isr} no live one would remain among {replicas}"
            )
        electable = {*partition.isr, *partition.eligible}
        if electable and electable.isdisjoint(replicas):
            raise InvalidReplicaAssignment(
                f"{name}: none of the replicas that hold all that is committed, {sorted(electable)}, is among {replicas}"
            )
        recompute(
            draft,
            partition,
            replace(
                partition,
                replicas=replicas,
                isr=isr,
                adding=tuple(b for b in target if b not in original),
                removing=tuple(b for b in original if b not in target),
            ),
        )
