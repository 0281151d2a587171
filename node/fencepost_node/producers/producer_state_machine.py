"""Producer state as one of the state machines that a partition's log folds."""

from __future__ import annotations

from fencepost_node.log.state_machine import StateMachine
from fencepost_node.producers.producer_state import ProducerState
from fencepost_node.producers.producer_state_codec import FORMAT, decode_producers, encode_producers

PRODUCERS = StateMachine(
    "producers", format=FORMAT, initial=ProducerState, encode=encode_producers, decode=decode_producers
)
