"""The controller: the only writer of cluster metadata. Elections, in-sync sets, topics, producer ids and epochs."""
