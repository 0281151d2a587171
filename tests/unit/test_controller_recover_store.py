"""The shell around a recovery: what happens to the store meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from random import Random
from typing import Any, cast
from unittest.mock import patch

import pytest

from fencepost_controller import recovery
from fencepost_controller.decisions.recovery import RecoveryRefused
from fencepost_controller.store import VersionMismatch
from fencepost_proto.protocol.metadata import Changes, Entity
from tests.unit.controller_recovery_story import EMPTY, story, told_by


class MovesOn:
    """A store that another recovery writes to between this one's reading and its writing."""

    def load(self) -> tuple[int, Sequence[Entity]]:
        return EMPTY.version, list(EMPTY.entities())

    def commit(self, expected_version: int, version: int, changes: Changes) -> None:
        raise VersionMismatch(f"metadata store is at version {version}, not {expected_version}")


def test_of_two_recoveries_at_once_the_second_writes_nothing_and_says_why() -> None:
    async def told(*_: object) -> tuple[list[object], list[str]]:
        return list(told_by(story().image, 1, 2, 3)), []

    class Host:
        random = Random(1)
        wire = None

    with (
        patch.object(recovery, "_ask_all", told),
        pytest.raises(RecoveryRefused, match=r"the store has changed meanwhile.*nothing was written.*not 1"),
    ):
        asyncio.run(recovery.recover_store(cast(Any, MovesOn()), cast(Any, Host()), []))
