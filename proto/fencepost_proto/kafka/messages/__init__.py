"""One module per API: its request, its response and the structs nested in them, in the notation of `schema.fields`.

The layouts are facts of Kafka's protocol (https://kafka.apache.org/protocol), the names Kafka's own in snake case.
"""
