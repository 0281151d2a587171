"""Fencepost's client library: `from fencepost import Producer, Consumer, AdminClient`."""

from fencepost import errors
from fencepost.admin import AdminClient
from fencepost.consumer import Consumer
from fencepost.consuming.partition import ConsumerRecord, TopicPartition
from fencepost.errors import FencepostError
from fencepost.history import History
from fencepost.producer import Producer
from fencepost.producing.config import ProducerConfig
from fencepost.producing.delivery import Delivery, RecordMetadata
from fencepost.producing.resume import Resumed
from fencepost.producing.sender import ProducerStats

__version__ = "0.1.0"

__all__ = [
    "AdminClient",
    "Consumer",
    "ConsumerRecord",
    "Delivery",
    "FencepostError",
    "History",
    "Producer",
    "ProducerConfig",
    "ProducerStats",
    "RecordMetadata",
    "Resumed",
    "TopicPartition",
    "__version__",
    "errors",
]
