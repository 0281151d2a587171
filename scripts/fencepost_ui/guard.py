"""Who may use the live page: what changes anything needs the token that only the page itself has, in a header of its own."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

from fencepost_testing.own_requests import SAFE_METHODS, Refused, check_site, is_token

TOKEN_HEADER: Final = "x-fencepost-token"


def check_request(method: str, headers: Mapping[str, str], port: int, token: str) -> None:
    """Raises Refused for a request that is not the page's own. `headers`: by lower-case name."""
    check_site(method, headers, port)
    if method in SAFE_METHODS:
        return
    given = headers.get(TOKEN_HEADER)
    if given is None:
        raise Refused(HTTPStatus.FORBIDDEN, f"no {TOKEN_HEADER} header: only the page itself may do this")
    if not is_token(given, token):
        raise Refused(HTTPStatus.FORBIDDEN, f"the {TOKEN_HEADER} is of another start of this page: load it again")
