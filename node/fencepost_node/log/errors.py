"""What a log raises where the disk refuses, or no longer holds what it held."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from fencepost_proto.protocol.errors import StorageError

NO_ROOM = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE, errno.EROFS))


class CorruptLog(StorageError):
    """The log is damaged where it was whole and synced before. Heal it from the leader; nothing is skipped."""

    def __init__(self, path: str, position: int, offset: int, problem: str) -> None:
        super().__init__(f"{path} is damaged at byte {position}, offset {offset}: {problem}")
        self.path = path
        self.position = position
        self.offset = offset
        self.problem = problem


class OutOfRoom(StorageError):
    """The disk is full, or another of its limits is reached, or it is mounted read-only now. Nothing is wrong with what it
    holds, and nothing has changed: it may be tried again."""


def storage_error(what: str, error: OSError) -> StorageError:
    """What a refusal of the disk that has left everything as it was is to others."""
    return (OutOfRoom if error.errno in NO_ROOM else StorageError)(f"{what}: {error}")


@contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """OSError becomes StorageError, or OutOfRoom."""
    try:
        yield
    except OSError as error:
        raise storage_error(what, error) from error
