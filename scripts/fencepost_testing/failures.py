"""What ends a command without being a bug."""

from __future__ import annotations


class CommandFailed(Exception):
    """Why a command could not do what it was asked for, in words for its user."""


def leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    """The exceptions in a group and in the groups inside it."""
    found: list[BaseException] = []
    for error in group.exceptions:
        found += leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found
