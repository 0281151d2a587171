"""What a broker's process can do that one of an earlier version cannot: one number, which it announces when it registers.

The controller asks nothing of a broker that it may not know. So processes may be upgraded in any order, and one may go
back to the version before. Levels only grow: each includes those below. A level that the controller does not know is
that of a newer broker.
"""

from __future__ import annotations

FIRST = 0  # it does not announce a level
ELIGIBLE_REPLICAS = 1  # as a leader it commits nothing while fewer than min.insync.replicas are in sync (KIP-966)
NEWEST = ELIGIBLE_REPLICAS
