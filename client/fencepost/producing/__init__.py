"""Gets a producer's batches into the log: the pure core (`sequencer`) and the shell around it."""
