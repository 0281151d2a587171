"""Elections, fencing and replication as stories: each file of `transcripts/` is what the decisions say to its events.

In a transcript `>` begins an event, the lines below it are what every part decides, and `#` begins a remark. After a change
of a rule, `pytest tests/unit/test_transcripts.py --rewrite-transcripts` writes the files again: read the difference.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.transcript_events import happens
from tests.unit.transcript_world import World

TRANSCRIPTS = sorted((Path(__file__).parent / "transcripts").glob("*.txt"))


def told_again(text: str) -> str:
    """The transcript with what the decisions say today."""
    world = World()
    lines: list[str] = []
    for line in text.splitlines():
        if line.startswith("> "):
            lines.append(line)
            lines.extend(f"    {decided}" for decided in happens(world, line.removeprefix("> ")))
        elif not line.startswith("    "):
            lines.append(line)
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("file", TRANSCRIPTS, ids=lambda file: file.stem)
def test_what_is_decided_reads_as_it_is_written(file: Path, rewrite_transcripts: bool) -> None:
    written = file.read_text()
    told = told_again(written)
    if rewrite_transcripts:
        file.write_text(told)
    else:
        assert told == written


def test_there_are_transcripts_of_elections_and_of_fencing() -> None:
    assert len(TRANSCRIPTS) >= 10


def test_an_event_in_words_that_none_has_is_refused() -> None:
    with pytest.raises(ValueError, match="0 events are worded 'broker 1 sings'"):
        happens(World(), "broker 1 sings")
