"""Builds histories for tests, a line at a time."""

from __future__ import annotations

from typing import cast

from fencepost.history_format import Operation, OperationType, RecordStamp
from fencepost_testing.history_check import Anomaly, Verdict, check_history

TOPIC = "orders"


class Story:
    """Operations in the order of time; by default of producer `p` and partition 0."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self._ids: dict[str, int] = {}
        self._sent: dict[str, tuple[str, int]] = {}

    def add(self, operation: Operation) -> None:
        self.operations.append(operation._replace(time_ns=len(self.operations) + 1))

    # ---- Sends ----

    def send(self, *values: str, process: str = "p", key: str | None = None, partition: int = -1) -> None:
        for value in values:
            self._ids[process] = self._ids.get(process, 0) + 1
            self._sent[value] = process, self._ids[process]
            self.add(Operation(process, 0, "invoke", "send", self._ids[process], TOPIC, partition, key, value))

    def _complete(self, value: str, kind: OperationType) -> Operation:
        process, number = self._sent[value]
        return Operation(process, 0, kind, "send", number, TOPIC)

    def ok(self, value: str, offset: int, partition: int = 0, stamp: tuple[int, int, int] | None = None) -> None:
        producer = RecordStamp(*stamp) if stamp is not None else None
        self.add(self._complete(value, "ok")._replace(partition=partition, offset=offset, producer=producer))

    def fail(self, value: str, *, may_have_been_appended: bool = False) -> None:
        self.add(self._complete(value, "fail")._replace(may_have_been_appended=may_have_been_appended))

    def info(self, value: str, stamp: tuple[int, int, int] | None = None) -> None:
        producer = RecordStamp(*stamp) if stamp is not None else None
        self.add(self._complete(value, "info")._replace(producer=producer, error="DeliveryTimeout"))

    def acked(self, *values: str, start: int = 0, process: str = "p") -> None:
        """Send and acknowledge, one offset after the other."""
        for offset, value in enumerate(values, start):
            self.send(value, process=process)
            self.ok(value, offset)

    # ---- Reads ----

    def poll(
        self, start: int, *values: str | None, process: str = "c", partition: int = 0, high_watermark: int = -1
    ) -> None:
        self.poll_records(list(enumerate(values, start)), process, partition, high_watermark)

    def poll_records(
        self,
        records: list[tuple[int, str | None]],
        process: str = "c",
        partition: int = 0,
        high_watermark: int = -1,
    ) -> None:
        self.add(
            Operation(
                process, 0, "ok", "poll", 0, TOPIC, partition, high_watermark=high_watermark, records=tuple(records)
            )
        )

    def seek(self, offset: int, process: str = "c", partition: int = 0) -> None:
        self.add(Operation(process, 0, "info", "seek", 0, TOPIC, partition, offset=offset))

    def final(self, start: int, *values: str, partition: int = 0, end: int | None = None) -> None:
        """A reader that goes through the whole partition at the end."""
        line = Operation("reader", 0, "invoke", "final", 0, TOPIC, partition)
        self.add(line)
        self.seek(start, "reader", partition)
        if values:
            self.poll(start, *values, process="reader", partition=partition)
        end_offset = start + len(values) if end is None else end
        self.add(line._replace(type="ok", start_offset=start, end_offset=end_offset))

    # ---- Unclean elections ----

    def elect(self, kept_end: int, log_end: int, outcome: str = "ok", partition: int = 0) -> None:
        """Ordered, and then told of: ok, fail, info."""
        order = self.order(kept_end, log_end, partition)
        self.told(order, outcome)

    def order(self, kept_end: int, log_end: int, partition: int = 0) -> Operation:
        """An election, of which nothing is told yet."""
        self._ids["operator"] = self._ids.get("operator", 0) + 1
        order = Operation("operator", 0, "invoke", "elect", self._ids["operator"], TOPIC, partition)
        self.add(order._replace(start_offset=kept_end, end_offset=log_end))
        return order

    def told(self, order: Operation, outcome: str) -> None:
        self.add(order._replace(type=cast(OperationType, outcome)))

    # ---- Judgement ----

    def check(self, *, foreign_records: bool = False, one_partition_per_key: bool = False) -> Verdict:
        return check_history(
            self.operations, foreign_records=foreign_records, one_partition_per_key=one_partition_per_key
        )

    def found(self, *, foreign_records: bool = False) -> dict[Anomaly, int]:
        return {
            anomaly: count for anomaly, count in self.check(foreign_records=foreign_records).counts.items() if count
        }
