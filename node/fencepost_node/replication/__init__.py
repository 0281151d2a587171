"""How a partition's replicas stay the same: what a leader knows, what it pushes, what a follower does with it."""
