"""Requests to the controller, relayed by any broker: one is asked after another until an answer is definite.

Where an answer is lost (a broker died, the controller was away) a change may have been made nevertheless. The request is
then repeated at another broker, and a refusal that says that the change is made already counts as success.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import grpc
from google.protobuf.message import Message

from fencepost.attempts import Attempts
from fencepost.cluster import ClusterClient
from fencepost_proto.protocol.errors import (
    FencepostError,
    NetworkException,
    NotController,
    RequestTimedOut,
    raise_for,
)
from fencepost_proto.protocol.metadata import MetadataImage
from fencepost_proto.protocol.v1 import controller_pb2_grpc
from fencepost_proto.transport.rpc_errors import Answer

TIMEOUT_S = 30.0  # for an answer, through failures
ATTEMPT_S = 3.0  # for one broker's answer
VISIBLE_TIMEOUT_S = 10.0  # until this client's own view shows a change


class Changed(Answer, Protocol):
    """The answer to a change."""

    @property
    def version(self) -> int:
        """The metadata version that carries it."""
        ...


Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Changed)
AnswerT = TypeVar("AnswerT", bound=Answer)


class ControllerRequests:
    """Of one client."""

    def __init__(self, cluster: ClusterClient) -> None:
        self._cluster = cluster

    async def ask(
        self,
        method: Callable[[controller_pb2_grpc.AdminAsyncStub], grpc.aio.UnaryUnaryMultiCallable[Request, AnswerT]],
        request: Request,
    ) -> AnswerT:
        """Ask the controller, through one broker after another."""
        attempts = Attempts(_name_of(request), TIMEOUT_S)
        while attempts.left_s > 0:
            for address in self._cluster.addresses():
                try:
                    answer = await self._cluster.call_admin(
                        method, request, address=address, timeout_s=min(max(attempts.left_s, 0.0), ATTEMPT_S)
                    )
                    raise_for(answer.error)
                    return answer
                except FencepostError as error:
                    if not error.retriable:
                        raise
                    attempts.failed(error)
            await attempts.pause()
        raise attempts.error

    async def change(
        self,
        method: Callable[[controller_pb2_grpc.AdminAsyncStub], grpc.aio.UnaryUnaryMultiCallable[Request, Response]],
        request: Request,
        already_so: type[FencepostError] | None,
        mine: Callable[[MetadataImage], bool] = lambda _: True,
    ) -> None:
        """Have the controller make a change, through one broker after another, and wait until this client's metadata
        shows it.

        An `already_so` refusal after a lost answer is success if the image then shows what was asked for (`mine`).
        """
        attempts = Attempts(_name_of(request), TIMEOUT_S)
        is_lost = False  # an answer
        while True:
            for address in self._cluster.addresses():
                left_s = attempts.left_s
                if left_s <= 0:
                    raise attempts.error
                try:
                    answer = await self._cluster.call_admin(
                        method, request, address=address, timeout_s=min(left_s, ATTEMPT_S)
                    )
                    raise_for(answer.error)
                except (NetworkException, RequestTimedOut, NotController) as error:
                    is_lost = True  # the change may have been made nevertheless
                    attempts.failed(error)
                    continue
                except FencepostError as error:
                    if not is_lost or already_so is None or not isinstance(error, already_so):
                        raise
                    try:
                        await self.see(mine, str(error))
                    except RequestTimedOut:
                        raise error from None
                    return
                await self._see_version(answer.version)
                return
            await attempts.pause()

    async def _see_version(self, version: int) -> None:
        message = f"the change is made (metadata version {version}), but not seen here yet"
        await self.see(lambda image: image.version >= version, message)

    async def see(self, condition: Callable[[MetadataImage], bool], otherwise: str) -> MetadataImage:
        try:
            return await self._cluster.wait_until(condition, VISIBLE_TIMEOUT_S)
        except TimeoutError:
            raise RequestTimedOut(otherwise) from None


def _name_of(request: Message) -> str:
    """The name of the request's RPC."""
    return request.DESCRIPTOR.name.removesuffix("Request")
