"""Fencepost's client library: `from fencepost import Producer, Consumer, AdminClient`."""

from fencepost import errors
from fencepost.consumer import Consumer
from fencepost.consumer_core import ConsumerRecord
from fencepost.errors import FencepostError
from fencepost.producer import Producer, ProducerStats
from fencepost.producing.config import ProducerConfig
from fencepost.producing.delivery import Delivery, RecordMetadata
from fencepost.producing.resume import Resumed

__all__ = [
    "Consumer",
    "ConsumerRecord",
    "Delivery",
    "FencepostError",
    "Producer",
    "ProducerConfig",
    "ProducerStats",
    "RecordMetadata",
    "Resumed",
    "errors",
]
