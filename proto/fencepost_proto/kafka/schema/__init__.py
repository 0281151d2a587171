"""How messages are written down (`fields`), and the readers and writers that are compiled from that."""
