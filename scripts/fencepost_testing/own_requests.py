"""Which requests a local HTTP server takes for its own users'. Pure: decided by the method and the headers.

The live page and the control server of tests can kill processes, and a browser sends requests of any page to any address,
also to this machine's own. So each request is checked, before anything else looks at it:

- *Host* is a loopback address at the server's port: a name of another site that resolves to 127.0.0.1 (DNS rebinding) is
  none;
- *Origin* and *Sec-Fetch-Site*, which browsers add to requests of pages, say the server's own site, where they are there;
- what needs it has the server's *token*, in a header that no page of another site can add without being asked for (CORS),
  which nothing here allows. Which header, and for which requests, is each server's own.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

from fencepost_testing.ports import LOOPBACK

HOST_NAMES: Final = (LOOPBACK, "localhost", "[::1]")
SAFE_METHODS: Final = ("GET", "HEAD")
MAX_SHOWN: Final = 100  # characters of what was refused

_OWN_SITES: Final = ("same-origin", "none")  # none: typed in, or a bookmark


class Refused(Exception):
    """A request that is answered with an error: its message says why, and names the value; `status` is HTTP's."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def check_site(method: str, headers: Mapping[str, str], port: int) -> None:
    """Raises Refused for a request that is not made to the server at this port, or by a page of another site.

    `headers`: by lower-case name.
    """
    own = [f"{name}:{port}" for name in HOST_NAMES]
    host = headers.get("host", "")
    if host.lower() not in own:
        raise Refused(
            HTTPStatus.MISDIRECTED_REQUEST, f"Host {host[:MAX_SHOWN]!r} is not this server: it is http://{own[0]}/"
        )
    origin = headers.get("origin")
    if origin is not None and origin != f"http://{host}":
        raise Refused(HTTPStatus.FORBIDDEN, f"Origin {origin[:MAX_SHOWN]!r}: pages of other sites are not served")
    site = headers.get("sec-fetch-site")
    if site is not None and site not in _OWN_SITES and not _is_navigation(method, headers):
        raise Refused(HTTPStatus.FORBIDDEN, f"Sec-Fetch-Site {site[:MAX_SHOWN]!r}: pages of other sites are not served")


def is_token(given: str, token: str) -> bool:
    """Whether what a request has is the server's token; how long that takes says nothing of it."""
    return hmac.compare_digest(given.encode("utf-8", "replace"), token.encode())


def _is_navigation(method: str, headers: Mapping[str, str]) -> bool:
    """Somebody follows a link to the page: it may be shown, and in no frame (the page forbids that)."""
    return (
        method in SAFE_METHODS
        and headers.get("sec-fetch-mode") == "navigate"
        and (headers.get("sec-fetch-dest") == "document")
    )
