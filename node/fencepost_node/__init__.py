"""A broker: the log, producer state, replication, and the services over them."""
