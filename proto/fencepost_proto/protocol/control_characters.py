"""Characters that must not get into a log line, or onto a terminal that shows one.

A line feed begins a line that the process never wrote; an escape sequence or a change of direction hides one that it did.
"""

from __future__ import annotations

import re

# C0 and C1 controls and DEL, the line and paragraph separators, and what reverses the direction of text.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def control_character(text: str) -> str:
    """The first one; "" where there is none."""
    if text.isprintable():
        return ""
    found = _CONTROL.search(text)
    return found[0] if found else ""
