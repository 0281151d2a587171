"""Both carriers on one port: `carrier_wire.py` chooses for each call, `shared_port.py` tells connections apart."""
