"""The lean carrier: the services' calls in length-prefixed frames over byte streams.

`frames.py` has the bytes, `link.py` the theory of operation and one connection, `client.py` and `server.py` its two
ends.
"""
