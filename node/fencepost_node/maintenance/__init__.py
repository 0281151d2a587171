"""Background work on replicas: sync, snapshots, retention, scrubbing, repair."""
