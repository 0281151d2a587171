"""DescribeBrokerConfig: the settings of this broker's process, with their defaults.

Supports: all of them, by name, as the process has them; they come from its file and do not change while it runs.

Errors: none. Limits: none; there are a few dozen.
"""

from __future__ import annotations

from fencepost_node.config import BrokerConfig
from fencepost_node.requests.broker_settings import broker_settings
from fencepost_proto.protocol.v1 import broker_pb2


def describe_broker_config(config: BrokerConfig) -> broker_pb2.DescribeBrokerConfigResponse:
    response = broker_pb2.DescribeBrokerConfigResponse(broker_id=config.broker_id)
    for setting in broker_settings(config):
        one = response.settings.add(name=setting.name, value=setting.value, doc=setting.doc)
        if setting.default is not None:
            one.default = setting.default
    return response
