"""Idempotent producers on a broker: the sequence rules, ids, and limits on new producers."""
