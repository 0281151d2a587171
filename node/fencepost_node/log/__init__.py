"""One partition's log on disk, and the producer state that follows from it."""
