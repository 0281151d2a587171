"""Reads partitions for a consumer: the pure core (`consumer_core`) and the shell around it (`fetching`)."""
