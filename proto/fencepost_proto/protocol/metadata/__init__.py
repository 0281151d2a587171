"""Cluster metadata as values: keyed entities, and the image that changes to them are applied to.

`entities` and `topic_config` hold the values, `kinds` the table of their kinds, `coding` their bytes, `image` all of them
together. What others use of that is imported from here.
"""

from fencepost_proto.protocol.entity import Entity
from fencepost_proto.protocol.metadata.coding import (
    delta_to_proto,
    encode_delta,
    encoded,
    from_proto,
    length_delimited,
    to_proto,
)
from fencepost_proto.protocol.metadata.entities import (
    FIRST_NAMED_ID,
    MAX_TOPIC_NAME,
    NO_LEADER,
    RETIRED_EPOCH,
    BrokerRegistration,
    ClusterIdentity,
    NamedProducer,
    NextProducerId,
    Partition,
    PartitionKey,
    Topic,
    check_topic_name,
)
from fencepost_proto.protocol.metadata.image import Changes, ImageBuilder, MetadataImage, partition_id
from fencepost_proto.protocol.metadata.kinds import config_from_proto, config_to_proto
from fencepost_proto.protocol.metadata.topic_config import (
    APPEND_TIME,
    CREATE_TIME,
    TOPIC_SETTINGS,
    Setting,
    TopicConfig,
    default_setting,
    format_setting,
    parse_setting,
)

__all__ = [
    "APPEND_TIME",
    "CREATE_TIME",
    "FIRST_NAMED_ID",
    "MAX_TOPIC_NAME",
    "NO_LEADER",
    "RETIRED_EPOCH",
    "TOPIC_SETTINGS",
    "BrokerRegistration",
    "Changes",
    "ClusterIdentity",
    "Entity",
    "ImageBuilder",
    "MetadataImage",
    "NamedProducer",
    "NextProducerId",
    "Partition",
    "PartitionKey",
    "Setting",
    "Topic",
    "TopicConfig",
    "check_topic_name",
    "config_from_proto",
    "config_to_proto",
    "default_setting",
    "delta_to_proto",
    "encode_delta",
    "encoded",
    "format_setting",
    "from_proto",
    "length_delimited",
    "parse_setting",
    "partition_id",
    "to_proto",
]
