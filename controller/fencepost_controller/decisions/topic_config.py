"""AlterTopicConfig: change settings of a topic while it runs.

What is set must be possible for every partition as it is now: `min_insync_replicas` at most the replicas that the smallest
one has, or will have when a reassignment is done. Otherwise the rules are those of a topic that is created.

`min_insync_replicas` also decides who is eligible: the version that lowers it ends what a leader may not rely on any more,
so all partitions are looked at again with it (`partitions.py`).

`flush_always` that is switched on holds for what is appended from then on. What the logs held before may be in no disk, so
such a topic goes on counting as one that loses unsynced data with the power (`was_unsynced`).

A change is in force on each broker once it has applied the version that carries it. So for a moment a leader may still
take, or a follower still acknowledge, by the settings before.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fencepost_controller.decisions.draft import Command, Draft
from fencepost_controller.decisions.partitions import recompute
from fencepost_controller.decisions.topics import MIN_SEGMENT_BYTES, check_config
from fencepost_proto.protocol.errors import InvalidRequest, UnknownTopicOrPartition
from fencepost_proto.protocol.metadata import default_setting, parse_setting


@dataclass(frozen=True, slots=True)
class AlterTopicConfig(Command[None]):
    name: str
    set_to: tuple[tuple[str, str], ...]  # name and value, as text
    reset: tuple[str, ...] = ()
    min_segment_bytes: int = MIN_SEGMENT_BYTES

    def decide(self, draft: Draft) -> None:
        topic = draft.topic_named(self.name)
        if topic is None:
            raise UnknownTopicOrPartition(f"topic {self.name!r} does not exist")
        changed = {name: default_setting(name) for name in self.reset}
        changed |= {name: parse_setting(name, text) for name, text in self.set_to}
        if len(changed) != len(self.reset) + len(self.set_to):
            names = [*self.reset, *(name for name, _ in self.set_to)]
            twice = next(name for name in names if names.count(name) > 1)
            raise InvalidRequest(f"topic {self.name!r}: two changes of {twice!r}")
        if not changed:
            raise InvalidRequest(f"topic {self.name!r}: no setting to change")
        config = replace(topic.config, **changed)  # type: ignore[arg-type]  # each parsed to its field's type
        partitions = draft.image.partitions_of(topic.topic_id)
        factor = min(len(p.replicas) - len(p.removing) for p in partitions)
        check_config(config, factor, self.min_segment_bytes)
        if config != topic.config:
            unsynced = topic.was_unsynced or not (topic.config.flush_always and config.flush_always)
            draft.put(replace(topic, config=config, was_unsynced=unsynced))
            for partition in partitions:
                recompute(draft, partition)
