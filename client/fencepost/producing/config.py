"""Settings of a producer, checked when it is made."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, TypedDict, get_args

from fencepost_proto.protocol.errors import InvalidConfig
from fencepost_proto.protocol.records import Compression
from fencepost_proto.runtime.backoff import Backoff
from fencepost_proto.runtime.config import setting
from fencepost_proto.transport.client_ids import DEFAULT_CLIENT_ID, check_client_id

KIB = 1024
MIB = 1024 * KIB
Acks = Literal["all", 1, 0]
MAX_BATCH_BYTES = 8 * 1024 * 1024  # a batch must fit a gRPC message with room to spare
_CODECS = tuple(name.lower() for name in Compression.__members__)


class ProducerOptions(TypedDict, total=False):
    """The fields of ProducerConfig as keyword arguments."""

    name: str
    client_id: str
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


@dataclass(frozen=True, slots=True, kw_only=True)
class ProducerConfig:
    """Sizes in bytes of records before compression; times in milliseconds. Raises InvalidConfig naming key and value."""

    name: str = setting(
        "", doc="Name of a producer of which one instance lives at a time: older ones are fenced, `resume` is possible."
    )
    client_id: str = setting(
        DEFAULT_CLIENT_ID, doc="A name for logs and faults, which goes with each call. It proves nothing."
    )
    acks: Acks = setting(  # noqa: RUF009  # it makes a field
        "all",
        choices=get_args(Acks),
        doc="`all`: exactly once. 1 and 0: without sequence numbers, so at most once, one batch at a time to a partition.",
    )
    compression: str = setting("none", choices=_CODECS, doc="Codec of the batches.")
    batch_size: int = setting(256 * KIB, minimum=1, maximum=MAX_BATCH_BYTES, doc="A batch of so many bytes is full.")
    linger_ms: float = setting(0, minimum=0, doc="How long a batch that is not full waits for more records.")
    buffer_memory: int = setting(
        32 * MIB, minimum=1, doc="Records that are not yet acknowledged or failed. Beyond it, `send` waits for room."
    )
    max_request_size: int = setting(MIB, minimum=1, maximum=MAX_BATCH_BYTES, doc="The largest record.")
    max_block_ms: int = setting(60_000, minimum=1, doc="How long `send` waits for room, and a start for a producer id.")
    delivery_timeout_ms: int = setting(
        120_000,
        minimum=1,
        doc="From `send` to acknowledged or failed. At most the brokers' `max_delivery_timeout_ms`.",
    )
    request_timeout_ms: int = setting(
        10_000, minimum=1, doc="How long a leader may take to commit a batch, before it is sent again."
    )
    retry_backoff_ms: int = setting(20, minimum=1, doc="Pause before a retry; it doubles with each.")
    retry_backoff_max_ms: int = setting(500, minimum=1, doc="The longest of these pauses; at least `retry_backoff_ms`.")

    def __post_init__(self) -> None:
        if self.acks not in ("all", 1, 0) or self.acks is True or self.acks is False:
            raise InvalidConfig(f"acks={self.acks!r}: 'all', 1 or 0")
        check_client_id(self.client_id)
        if not isinstance(self.name, str):
            raise InvalidConfig(f"name={self.name!r}: text is expected")
        if not isinstance(self.compression, str) or self.compression.lower() not in _CODECS:
            raise InvalidConfig(f"compression={self.compression!r}: one of {', '.join(_CODECS)}")
        if self.name and self.acks != "all":
            raise InvalidConfig(f"name={self.name!r} with acks={self.acks!r}: a named producer needs acks='all'")
        for field in fields(self):
            least, most = field.metadata["minimum"], field.metadata["maximum"]
            if least is not None:
                self._check_range(field.name, least, most)
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
    def backoff(self) -> Backoff:
        """The pauses between attempts, of every kind."""
        return Backoff(self.retry_backoff_ms / 1000, self.retry_backoff_max_ms / 1000)

    @property
    def codec(self) -> Compression:
        return Compression[self.compression.upper()]
