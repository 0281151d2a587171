"""Who may use a local HTTP server: this machine, by the server's own name, with its token, and no page of another site.

A browser sends requests of any page to any address, also to this machine's own. So each request is checked:

- *Host* is the server's own address: a name of another site that resolves to 127.0.0.1 (DNS rebinding) is refused;
- *Origin*, which browsers add to requests of pages, is the server's own, if it is there;
- *Authorization* is `Bearer <token>`. A page of another site cannot add it without being asked for (CORS), and nothing here
  allows that.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from fencepost_testing.failures import CommandFailed
from fencepost_testing.local_http import MAX_SHOWN, TOKEN_BYTES, Refused, own_hosts

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

    def check_origin(self, headers: Mapping[str, str]) -> None:
        """Raises Refused for a request that is not made to this server, or by a page of another site."""
        host = headers.get("host", "")
        if host not in own_hosts(self.port):
            raise Refused(403, f"Host {host[:MAX_SHOWN]!r} is not this server: use http://127.0.0.1:{self.port}")
        origin = headers.get("origin")
        if origin is not None and origin != f"http://{host}":
            raise Refused(403, f"Origin {origin[:MAX_SHOWN]!r}: pages of other sites are not served")

    def check_token(self, headers: Mapping[str, str]) -> None:
        """Raises Refused for a request without the token."""
        given = headers.get("authorization", "")
        if not given:
            raise Refused(401, "no token: send the header 'Authorization: Bearer <token>', as printed at the start")
        kind, _, token = given.partition(" ")
        if kind.lower() != "bearer" or not hmac.compare_digest(token.strip().encode(), self.token.encode()):
            raise Refused(401, f"the token {token.strip()[:4]}… is not this server's: it is printed at the start")
