"""State machines: what a log folds its batches into.

A log is opened with a list of them. For each it keeps a *state*: what the batches below the log's end make, oldest first,
from the initial state on. Leader, follower and recovery fold the same batches, so they have the same states. A snapshot
holds every state at one offset; a state behind it is a snapshot's and the fold of the batches between.

What a machine has to be:

- Pure. A state depends on the batches and their offsets, and on nothing else: no clock, no I/O, no randomness.
- By headers, or by whole batches. Most machines need the headers alone. One that `reads_batches` is given the batches'
  bytes, as stored; only logs that fold such a machine have bytes cut out, or read from the disk, for it.
- In two steps. `stage` computes what changes with the next batches, changes nothing, and raises InvariantBroken where they
  cannot follow; `apply` cannot fail. So a log stages first, writes, and applies only what was written.
- Quick on the event loop: `stage` and `apply` look at what the batches name, `copy` takes references (a few milliseconds at
  most). `encode` and `decode` may take longer: they run in threads, and call `pause` every half a millisecond or so.

`copy` is independent of its original: either may change, in another thread, and the other one does not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, Self, TypeVar

from fencepost_proto.protocol.record_batch import BatchHeader, Buffer

Pause = Callable[[], None]  # gives other threads a turn


def no_pause() -> None:
    """For few and small states."""


StagedT = TypeVar("StagedT")
AppliedT_contra = TypeVar("AppliedT_contra", contravariant=True)

_PART_NAME = re.compile(rb"[a-z0-9-]{1,32}")


def is_part_name(name: bytes) -> bool:
    return _PART_NAME.fullmatch(name) is not None


class StagingState(Protocol[AppliedT_contra]):
    """The state of one machine at one offset."""

    def apply(self, staged: AppliedT_contra) -> None:
        """Change what `stage` computed from this state."""
        ...

    def copy(self) -> Self: ...

    def __len__(self) -> int:
        """How many entries it has, for a line of the log."""
        ...


class FoldedState(StagingState[StagedT], Protocol[StagedT]):
    """Of a machine that looks at headers."""

    def stage(self, headers: Sequence[BatchHeader]) -> StagedT:
        """What changes when these batches follow, at their headers' base offsets. Raises InvariantBroken."""
        ...


class FoldedBatches(StagingState[StagedT], Protocol[StagedT]):
    """Of a machine that `reads_batches`."""

    def stage_batches(self, batches: Sequence[Buffer]) -> StagedT:
        """As `FoldedState.stage`, of checked batches."""
        ...


StateT = TypeVar("StateT", bound="StagingState[Any]")  # what is staged concerns the machine alone


@dataclass(frozen=True, eq=False)
class StateMachine(Generic[StateT]):
    """One kind of state, and its bytes."""

    name: str  # of its part in a snapshot; see `is_part_name`
    format: int  # of the bytes that `encode` gives, 1 to 255; `decode` reads every one from 1 to it
    initial: Callable[[], StateT]  # at offset 0
    encode: Callable[[StateT, Pause], bytes]
    decode: Callable[[bytes, int, Pause], StateT]  # data and its format; raises CorruptMessage
    reads_batches: bool = False  # its state is a FoldedBatches; otherwise a FoldedState

    def __post_init__(self) -> None:
        if not is_part_name(self.name.encode()):
            raise ValueError(f"state machine {self.name!r}: the name is 1 to 32 lower-case letters, digits and hyphens")


AnyMachine = StateMachine[Any]


class States:
    """The states of all of a log's machines, at one offset."""

    __slots__ = ("_by_batches", "_by_headers", "_of", "reads_batches")

    def __init__(self, of: Mapping[AnyMachine, StagingState[Any]]) -> None:
        self._of: dict[AnyMachine, Any] = dict(of)
        # At every append; a dict's values take longer.
        self._by_headers: tuple[FoldedState[Any], ...] = tuple(
            state for machine, state in self._of.items() if not machine.reads_batches
        )
        self._by_batches: tuple[FoldedBatches[Any], ...] = tuple(
            state for machine, state in self._of.items() if machine.reads_batches
        )
        self.reads_batches = bool(self._by_batches)  # whether `stage` needs the bytes

    @staticmethod
    def initial(machines: Iterable[AnyMachine]) -> States:
        """At offset 0."""
        return States({machine: machine.initial() for machine in machines})

    def __getitem__(self, machine: StateMachine[StateT]) -> StateT:
        state: StateT = self._of[machine]
        return state

    @property
    def machines(self) -> tuple[AnyMachine, ...]:
        return tuple(self._of)

    def stage(self, headers: Sequence[BatchHeader], batches: Sequence[Buffer] = ()) -> list[object]:
        """For `apply`; as `FoldedState.stage`. `batches`: the bytes of each, where `reads_batches` says so."""
        staged: list[object] = []
        for state in self._by_headers:
            staged.append(state.stage(headers))
        for reader in self._by_batches:
            staged.append(reader.stage_batches(batches))
        return staged

    def apply(self, staged: list[object]) -> None:
        number = 0
        for state in self._by_headers:
            state.apply(staged[number])
            number += 1
        for reader in self._by_batches:
            reader.apply(staged[number])
            number += 1

    def __str__(self) -> str:
        """The number of entries of each."""
        return " ".join(f"{machine.name}={len(state)}" for machine, state in self._of.items())

    def copy(self) -> States:
        return States({machine: state.copy() for machine, state in self._of.items()})
