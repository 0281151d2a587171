"""The errors in Kafka's answers, wherever an API has them."""

from __future__ import annotations

import pytest

from fencepost_proto.kafka.messages.api_versions import ApiVersionsResponse
from fencepost_proto.kafka.messages.describe_configs import DescribeConfigsResponse
from fencepost_proto.kafka.messages.fetch import FetchableTopicResponse, FetchResponse, PartitionData
from fencepost_proto.kafka.messages.join_group import JoinGroupResponse
from fencepost_proto.kafka.response_errors import error_codes


@pytest.mark.parametrize(
    ("response", "codes"),
    [
        (JoinGroupResponse(error_code=27), [27]),
        (ApiVersionsResponse(), []),
        (FetchResponse(error_code=3, responses=[
            FetchableTopicResponse(partitions=[PartitionData(error_code=1), PartitionData(), PartitionData(error_code=6)]),
            FetchableTopicResponse(partitions=[PartitionData(error_code=6)]),
        ]), [3, 1, 6, 6]),
        (DescribeConfigsResponse(), []),
    ],
)  # fmt: skip
def test_each_place_with_an_error_is_told(response: object, codes: list[int]) -> None:
    assert list(error_codes(response)) == codes
