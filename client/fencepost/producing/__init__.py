"""How a producer gets its batches into the log: the pure core (`sequencer`), and the shell around it."""
