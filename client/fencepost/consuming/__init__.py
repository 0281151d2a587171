"""The parts of the consumer."""
