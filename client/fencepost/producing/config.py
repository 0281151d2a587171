"""Settings of a producer, checked when it is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypedDict

from fencepost_proto.protocol.errors import InvalidConfig
from fencepost_proto.protocol.records import Compression

Acks = Literal["all", 1, 0]
MAX_BATCH_BYTES = 8 * 1024 * 1024  # a batch must fit a gRPC message with room to spare


class ProducerOptions(TypedDict, total=False):
    """The fields of ProducerConfig, as keywords."""

    name: str
    acks: Acks
    compression: str
    batch_size: int
    linger_ms: float
    buffer_memory: int
    max_request_size: int
    max_block_ms: int
    delivery_timeout_ms: int
    request_timeout_ms: int
    retry_backoff_ms: int
    retry_backoff_max_ms: int
    fault_drop_acks: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ProducerConfig:
    """Sizes in bytes of records before compression; times in milliseconds."""

    name: str = ""  # a named producer: one live instance at a time, older ones are fenced, `resume` is possible
    acks: Acks = "all"  # "all": exactly once. 1 and 0: no stamps, so at most once, one batch at a time to a partition
    compression: str = "none"  # none, gzip, snappy, lz4, zstd
    batch_size: int = 256 * 1024
    linger_ms: float = 0  # how long a batch that is not full waits for more records
    buffer_memory: int = 32 * 1024 * 1024  # of records that are not yet acknowledged or failed; `send` waits for room
    max_request_size: int = 1024 * 1024  # of one record
    max_block_ms: int = 60_000  # how long `send` waits for room, and a start for a producer id
    delivery_timeout_ms: int = 120_000  # from `send` to acknowledged or failed
    request_timeout_ms: int = 10_000  # how long a leader may take to commit a batch, before it is sent again
    retry_backoff_ms: int = 20  # doubles up to the next
    retry_backoff_max_ms: int = 500
    # A fault switch: the probability that an answer is thrown away and its connection broken, so that what was in
    # flight must be sent again and brokers must recognise what they have. For demonstrations and tests.
    fault_drop_acks: float = 0.0

    def __post_init__(self) -> None:
        if self.acks not in ("all", 1, 0) or self.acks is True or self.acks is False:
            raise InvalidConfig(f"acks={self.acks!r}: 'all', 1 or 0")
        if not isinstance(self.name, str):
            raise InvalidConfig(f"name={self.name!r}: text is expected")
        if not isinstance(self.compression, str) or self.compression.upper() not in Compression.__members__:
            known = ", ".join(name.lower() for name in Compression.__members__)
            raise InvalidConfig(f"compression={self.compression!r}: one of {known}")
        if self.name and self.acks != "all":
            raise InvalidConfig(f"name={self.name!r} with acks={self.acks!r}: a named producer needs acks='all'")
        self._check_range("fault_drop_acks", 0, 1)
        self._check_range("batch_size", 1, MAX_BATCH_BYTES)
        self._check_range("max_request_size", 1, MAX_BATCH_BYTES)
        self._check_range("buffer_memory", 1)
        self._check_range("linger_ms", 0)
        for name in ("max_block_ms", "delivery_timeout_ms", "request_timeout_ms"):
            self._check_range(name, 1)
        self._check_range("retry_backoff_ms", 1)
        self._check_range("retry_backoff_max_ms", self.retry_backoff_ms)

    def _check_range(self, name: str, least: float, most: float | None = None) -> None:
        value = getattr(self, name)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise InvalidConfig(f"{name}={value!r}: a number is expected")
        if value < least or (most is not None and value > most):
            limit = f"at least {least}" + (f" and at most {most}" if most is not None else "")
            raise InvalidConfig(f"{name}={value!r}: must be {limit}")

    @property
    def idempotent(self) -> bool:
        return self.acks == "all"

    @property
    def wire_acks(self) -> int:
        return -1 if self.acks == "all" else self.acks

    @property
    def codec(self) -> Compression:
        return Compression[self.compression.upper()]
