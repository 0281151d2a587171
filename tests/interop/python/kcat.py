"""kcat, the command, where the system has it. Its messages of one partition are delivered in the order of its input."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable
from typing import IO

from tests.interop.python.lines import (
    KEYS,
    key_of,
    now_ms,
    paced,
    say,
    say_assigned,
    say_record,
    until_terminated,
    value_of,
)

KCAT = shutil.which("kcat") or shutil.which("kafkacat") or "kcat"
DELIVERY_MS = 120_000
CHECK_S = 0.1
_DELIVERED = re.compile(r"Message delivered to partition (\d+) \(offset (\d+)\)")
_FAILED = re.compile(r"Delivery failed|FATAL|Fatal error")
_ASSIGNED = re.compile(r"rebalanced .*: assigned: (.*)$")


def version() -> str:
    """Of kcat and of its librdkafka."""
    told = subprocess.run([KCAT, "-V"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"Version (\S+) \(.*librdkafka (\S+)", told)
    return f"{found[1]} (librdkafka {found[2]})" if found else "?"


def produce(bootstrap: str, topic: str, run: str, count: int, rate: float) -> None:
    """A process a partition: its reports name partition and offset, not the message."""
    senders = [_Sender(bootstrap, topic, partition) for partition in _partitions(bootstrap, topic)]
    for record_id in paced(count, rate):
        senders[(record_id % KEYS) % len(senders)].send(run, record_id)
    for sender in senders:
        sender.finish()
    say("done")


class _Sender:
    def __init__(self, bootstrap: str, topic: str, partition: int) -> None:
        settings = ["enable.idempotence=true", "linger.ms=5", f"message.timeout.ms={DELIVERY_MS}"]
        options = [word for setting in settings for word in ("-X", setting)]
        self._process = subprocess.Popen(
            [KCAT, "-P", "-E", "-vv", "-b", bootstrap, "-t", topic, "-p", str(partition), "-K", "|", *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._waiting: deque[tuple[int, int]] = deque()  # record id, when it was sent
        assert self._process.stderr is not None
        self._reader = threading.Thread(target=self._read, args=[self._process.stderr])
        self._reader.start()

    def send(self, run: str, record_id: int) -> None:
        self._waiting.append((record_id, now_ms()))
        assert self._process.stdin is not None
        self._process.stdin.write(f"{key_of(record_id).decode()}|{value_of(run, record_id).decode()}\n")
        self._process.stdin.flush()

    def finish(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._reader.join()
        if status := self._process.wait():
            say("fatal", f"kcat ended with status {status}")

    def _read(self, lines: Iterable[str]) -> None:
        for line in lines:
            if delivered := _DELIVERED.search(line):
                record_id, sent_ms = self._waiting.popleft()
                say("ack", record_id, delivered[1], delivered[2], sent_ms)
            elif _FAILED.search(line):
                say("fatal", line.strip())


def consume(bootstrap: str, topic: str, group: str) -> None:
    ended = until_terminated()
    settings = [
        "auto.offset.reset=earliest",
        "session.timeout.ms=6000",
        "auto.commit.interval.ms=500",
        "fetch.wait.max.ms=100",
    ]
    options = [word for setting in settings for word in ("-X", setting)]
    whole = ["-C", "-o", "beginning", "-t", topic] if group == "-" else ["-G", group, topic]
    process = subprocess.Popen(
        [KCAT, "-E", "-u", "-f", "%p %o %k %s\\n", "-b", bootstrap, *options, *whole],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    readers = [
        threading.Thread(target=_read_records, args=[process.stdout]),
        threading.Thread(target=_read_notes, args=[process.stderr]),
    ]
    for reader in readers:
        reader.start()
    if group == "-":
        say_assigned(_partitions(bootstrap, topic))
    while not ended.wait(CHECK_S):
        if process.poll() is not None:
            say("fatal", f"kcat ended with status {process.returncode}")
            break
    process.terminate()
    for reader in readers:
        reader.join()
    process.wait()
    say("done")


def _read_records(lines: IO[str]) -> None:
    for line in lines:
        partition, offset, key, value = line.split()
        say_record(int(partition), int(offset), key.encode(), value.encode())


def _read_notes(lines: IO[str]) -> None:
    for line in lines:
        if assigned := _ASSIGNED.search(line):
            say_assigned(int(partition) for partition in re.findall(r"\[(\d+)\]", assigned[1]))
        else:
            say("note", line.strip())


def _partitions(bootstrap: str, topic: str) -> range:
    told = subprocess.run([KCAT, "-L", "-b", bootstrap, "-t", topic], capture_output=True, text=True, check=True).stdout
    found = re.search(r'topic "[^"]+" with (\d+) partitions', told)
    if found is None:
        raise ValueError(f"kcat does not say how many partitions {topic} has: {told[:500]}")
    return range(int(found[1]))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["produce", bootstrap, topic, run, count, rate]:
            produce(bootstrap, topic, run, int(count), float(rate))
        case ["consume", bootstrap, topic, group]:
            consume(bootstrap, topic, group)
        case other:
            sys.exit(f"unknown arguments {other}")
