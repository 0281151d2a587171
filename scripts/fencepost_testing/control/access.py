"""Who may use the control server: whoever sends its token, as `Authorization: Bearer <token>`."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from fencepost_testing.failures import CommandFailed
from fencepost_testing.local_http import TOKEN_BYTES
from fencepost_testing.own_requests import Refused, check_site, is_token

MIN_TOKEN: Final = 16  # characters of one that the user chooses


class WeakToken(CommandFailed):
    """A token that others could guess, or that no header can carry."""


@dataclass(frozen=True, slots=True)
class Access:
    """Of one server."""

    port: int
    token: str = field(default_factory=lambda: secrets.token_urlsafe(TOKEN_BYTES), repr=False)

    def __post_init__(self) -> None:
        """Raises WeakToken."""
        if len(self.token) < MIN_TOKEN or not all(33 <= ord(character) <= 126 for character in self.token):
            raise WeakToken(f"a token of {len(self.token)} characters: at least {MIN_TOKEN}, of printable ASCII")

    def check_site(self, method: str, headers: Mapping[str, str]) -> None:
        """Raises Refused for a request that is not made to this server, or by a page of another site."""
        check_site(method, headers, self.port)

    def check_token(self, headers: Mapping[str, str]) -> None:
        """Raises Refused for a request without the token."""
        given = headers.get("authorization", "")
        if not given:
            raise Refused(401, "no token: send the header 'Authorization: Bearer <token>', as printed at the start")
        kind, _, token = given.partition(" ")
        if kind.lower() != "bearer" or not is_token(token.strip(), self.token):
            raise Refused(401, f"the token {token.strip()[:4]}… is not this server's: it is printed at the start")
