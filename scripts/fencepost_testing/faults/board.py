"""Where the faults of one cluster are posted: a folder in the cluster's folder, which its processes read.

    DIR/faults/rules.json     the rules in force, replaced in one step
    DIR/faults/board          mapped into memory by all: the version of the rules, and how often each rule has fired
    DIR/faults/timeline       one JSON line for each rule that was posted, has fired or was removed

Whoever posts writes rules.json and then raises the version. A process compares the version, a number in its own memory,
with that of the rules that it has read, wherever a fault could act: so a fault acts on whatever happens after `post` has
returned, without an answer of any process, and one that starts later has it too. For what waits in a process, it looks at
the version every few milliseconds. Counters change under a lock on the board, so "the next two" are two in all processes
together. All are plain files, neither sockets nor FIFOs, at which a copy of a running cluster's folder would stumble.

The folder and its files are open to their owner alone. Only processes that are started by `faults.process` look here.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import mmap
import os
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from fencepost_testing.faults.rules import FaultError, Posted, Rule

FOLDER: Final = "faults"
MAX_RULES: Final = 64
MAX_ENDED: Final = 1_024  # rules that were removed, whose counts are remembered
MAX_TIMELINE_BYTES: Final = 1024 * 1024  # what happens after that is counted, and not written down

_VERSION = struct.Struct("<Q")
_SLOT = struct.Struct(
    "<QQ"
)  # how often it has fired; when it last did, in nanoseconds of this machine's monotonic clock
_BOARD_BYTES = _VERSION.size + MAX_RULES * _SLOT.size
_NS_OF_MS = 1_000_000


class Board:
    """One process's view of the folder. Safe to use from any thread."""

    def __init__(self, folder: Path) -> None:
        """Raises FaultError where there is none, or where others can write there."""
        self.folder = folder
        self._lock = threading.Lock()  # a lock on the file holds off other processes, not this one's other threads
        self._seen = -1
        self._posted: tuple[Posted, ...] = ()
        try:
            status = folder.stat()
            if status.st_uid != os.geteuid() or status.st_mode & 0o077:
                raise FaultError(f"{folder} is open to others: faults are taken from a folder of this user's only")
            self._file = os.open(folder / "board", os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise FaultError(f"no faults can be had in {folder}: {error.strerror}") from error
        self._memory = mmap.mmap(self._file, _BOARD_BYTES)
        self._version = self.version_cell = memoryview(self._memory)[: _VERSION.size].cast("Q")

    @classmethod
    def create(cls, folder: Path) -> Board:
        """The folder's board, made where it is not there."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(folder / "board", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(descriptor).st_size < _BOARD_BYTES:
                os.ftruncate(descriptor, _BOARD_BYTES)
        finally:
            os.close(descriptor)
        return cls(folder)

    def close(self) -> None:
        self._version.release()
        self._memory.close()
        os.close(self._file)

    # ---- Reading ----

    @property
    def version(self) -> int:
        return self._version[0]

    def posted(self) -> tuple[Posted, ...]:
        """The rules in force, oldest first."""
        if self._version[0] != self._seen:
            with self._lock:
                self._read()
        return self._posted

    def ended(self, rule_id: str) -> str | None:
        """What a rule did that was removed; None for one that never was, or is still in force."""
        removed = [line for line in self.timeline() if line["id"] == rule_id and line["what"] == "removed"]
        return removed[-1]["text"] if removed else None

    def count(self, rule_id: str) -> int:
        """How often the rule has fired, also once it was removed. Raises FaultError for one that never was."""
        with self._held():
            state = self._read()
            for posted in self._posted:
                if posted.id == rule_id:
                    return self._slot(posted.slot)[0]
            try:
                return int(state["ended"][rule_id])
            except KeyError:
                raise FaultError(f"no fault {rule_id!r}: {self._known()}") from None

    def timeline(self) -> list[dict[str, Any]]:
        """What happened, oldest first: `at` (seconds since the epoch), `what` (posted, fired, removed), `id`, `text`."""
        try:
            lines = (self.folder / "timeline").read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in lines]

    # ---- Posting ----

    def post(self, rule: Rule) -> Posted:
        """Put a rule in force. Raises FaultError where MAX_RULES are."""
        with self._held():
            state = self._read()
            free = set(range(MAX_RULES)) - {posted.slot for posted in self._posted}
            if not free:
                raise FaultError(f"{MAX_RULES} faults are set, which is the most: remove some")
            number = state["next"]
            posted = Posted(f"{rule.action}-{number}", min(free), rule)
            _SLOT.pack_into(self._memory, self._place(posted.slot), 0, 0)
            self._write({**state, "next": number + 1}, (*self._posted, posted))
            self.note("posted", posted)
        return posted

    def remove(self, rule_id: str) -> int:
        """Take a rule back; how often it has fired. One that was removed before stays so. Raises FaultError."""
        count = self.count(rule_id)
        with self._held():
            state = self._read()
            self._end(state, [posted for posted in self._posted if posted.id == rule_id])
        return count

    def clear(self) -> None:
        """Take all back."""
        with self._held():
            self._end(self._read(), list(self._posted))

    def _end(self, state: dict[str, Any], ended: list[Posted]) -> None:
        if not ended:
            return
        counts = {**state["ended"], **{posted.id: self._slot(posted.slot)[0] for posted in ended}}
        state = {**state, "ended": dict(list(counts.items())[-MAX_ENDED:])}
        self._write(state, tuple(posted for posted in self._posted if posted not in ended))
        for posted in ended:
            self.note("removed", posted)

    # ---- Firing ----

    def fire(self, posted: Posted) -> int:
        """Count one more; how many that makes. 0: it has fired often enough, or just now, or is not in force any more."""
        limits = posted.rule.limits
        with self._held():
            if self._version[0] != self._seen:
                self._read()
            if posted not in self._posted:
                return 0
            count, last_ns = self._slot(posted.slot)
            now_ns = time.monotonic_ns()
            if limits.times is not None and count >= limits.times:
                return 0
            if limits.every_ms and count and now_ns - last_ns < limits.every_ms * _NS_OF_MS:
                return 0
            _SLOT.pack_into(self._memory, self._place(posted.slot), count + 1, now_ns)
        return count + 1

    def is_spent(self, posted: Posted) -> bool:
        """It has fired as often as it may."""
        return posted.rule.limits.times is not None and self._slot(posted.slot)[0] >= posted.rule.limits.times

    def note(self, what: str, posted: Posted, text: str = "") -> None:
        """A line of the timeline."""
        line = {"at": time.time(), "what": what, "id": posted.id, "text": text or posted.rule.describe()}
        descriptor = os.open(self.folder / "timeline", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(descriptor).st_size < MAX_TIMELINE_BYTES:
                os.write(descriptor, f"{json.dumps(line)}\n".encode())
        finally:
            os.close(descriptor)

    # ---- The files ----

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        """No other thread and no other process changes anything meanwhile."""
        with self._lock:
            fcntl.flock(self._file, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(self._file, fcntl.LOCK_UN)

    def _read(self) -> dict[str, Any]:
        try:
            state: dict[str, Any] = json.loads((self.folder / "rules.json").read_bytes())
        except FileNotFoundError:
            state = {"version": 0, "next": 1, "rules": [], "ended": {}}
        self._posted = tuple(Posted.from_json(said) for said in state["rules"])
        self._seen = state["version"]
        return state

    def _write(self, state: dict[str, Any], posted: tuple[Posted, ...]) -> None:
        """rules.json first: who sees the new version finds the new rules. One who reads before that reads again."""
        version = state["version"] + 1
        content = {**state, "version": version, "rules": [one.to_json() for one in posted]}
        draft = self.folder / "rules.json.draft"
        draft.write_text(json.dumps(content), encoding="utf-8")
        draft.replace(self.folder / "rules.json")
        self._version[0] = version
        self._posted, self._seen = posted, version

    @staticmethod
    def _place(slot: int) -> int:
        return _VERSION.size + slot * _SLOT.size

    def _slot(self, slot: int) -> tuple[int, int]:
        count, last_ns = _SLOT.unpack_from(self._memory, self._place(slot))
        return count, last_ns

    def _known(self) -> str:
        return f"there are {', '.join(posted.id for posted in self._posted)}" if self._posted else "none is set"
