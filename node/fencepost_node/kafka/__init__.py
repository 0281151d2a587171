"""The Kafka edge: a listener for Kafka's protocol, its connections, and one file an API key.

An API's file translates between Kafka's messages and `requests/`, and decides nothing.
"""
