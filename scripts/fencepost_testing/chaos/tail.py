"""Counts the acknowledgements in histories while they are written."""

from __future__ import annotations

from pathlib import Path

_ACKED = b'"type":"ok","op":"send"'


class AckCounter:
    """Of one history: reads only what is new at each call."""

    def __init__(self, history_file: Path) -> None:
        self._path = history_file
        self._position = 0
        self._acked = 0

    def count(self) -> int:
        """So far; 0 while there is no history."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._position)
                new = file.read()
        except FileNotFoundError:
            return 0
        whole = new[: new.rfind(b"\n") + 1]
        self._position += len(whole)
        self._acked += whole.count(_ACKED)
        return self._acked
