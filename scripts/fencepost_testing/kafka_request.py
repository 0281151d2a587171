"""One request to a broker, over Kafka's protocol, on a connection of its own.

What the testing package itself asks goes this way and not over gRPC: it needs no more than a socket, so a test's own gRPC
channels, event loops and forks are not disturbed by it, and nothing has to be imported for it.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from fencepost_proto.kafka.apis import APIS
from fencepost_proto.kafka.codec import MalformedFrame, decode_response, encode_request
from fencepost_testing.failures import CommandFailed

CLIENT_ID = "fencepost-testing"
ANSWER_TIMEOUT_S = 5.0
MAX_ANSWER_BYTES = 64 << 20
_KEYS = {api.request: api for api in APIS.values()}


class NoAnswer(CommandFailed):
    """The broker does not answer: it does not run, hangs, or closes the connection."""


def prepare(*requests: object) -> None:
    """Compile what writes these requests and reads their answers, which the first of each would wait for."""
    for request in requests:
        api = _KEYS[type(request)]
        encode_request(api.key, api.max_version, 1, CLIENT_ID, request)
        with contextlib.suppress(MalformedFrame):  # no bytes are no answer; but it has its reader then
            decode_response(api.key, api.max_version, memoryview(b""))


async def ask_broker(address: str, request: object, timeout_s: float = ANSWER_TIMEOUT_S) -> Any:
    """The answer, of the class that `fencepost_proto.kafka.apis` names. Raises NoAnswer."""
    api = _KEYS[type(request)]
    host, _, port = address.rpartition(":")
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(host, int(port))
            try:
                writer.writelines(encode_request(api.key, api.max_version, 1, CLIENT_ID, request))
                size = int.from_bytes(await reader.readexactly(4), "big")
                if size > MAX_ANSWER_BYTES:
                    raise NoAnswer(f"{address} answers {api.name} with a frame of {size} bytes")
                frame = await reader.readexactly(size)
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
        return decode_response(api.key, api.max_version, memoryview(frame))[1]
    except TimeoutError:
        raise NoAnswer(f"{address} does not answer {api.name} within {timeout_s:g} s") from None
    except (OSError, asyncio.IncompleteReadError, MalformedFrame) as error:
        raise NoAnswer(f"{address} does not answer {api.name}: {error}") from error
