"""Who may ask this server. Pure: decided by the method and the headers.

The page can kill processes, so no page of another site may use it, though the visitor's browser would carry its requests:

- the Host has to be a loopback address (a name of another site that resolves to 127.0.0.1 is no such), at this port;
- an Origin, where there is one, has to be this page's own, and so has Sec-Fetch-Site to say so;
- what changes anything needs the token, which only the page itself has, in a header of its own.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

from fencepost_testing.local_http import MAX_SHOWN, Refused, own_hosts

TOKEN_HEADER: Final = "x-fencepost-token"
SAFE_METHODS: Final = ("GET", "HEAD")

_OWN_SITES = ("same-origin", "none")  # none: typed in, or a bookmark


def check_request(method: str, headers: Mapping[str, str], port: int, token: str) -> None:
    """Raises Refused for a request that is not the page's own. `headers`: by lower-case name."""
    own = own_hosts(port)
    host = headers.get("host", "")
    if host.lower() not in own:
        raise Refused(
            HTTPStatus.MISDIRECTED_REQUEST, f"Host {host[:MAX_SHOWN]!r} is not this page: open http://{own[0]}/"
        )
    origin = headers.get("origin")
    if origin is not None and origin != f"http://{host}":
        raise Refused(HTTPStatus.FORBIDDEN, f"Origin {origin[:MAX_SHOWN]!r}: another site may not use this page")
    site = headers.get("sec-fetch-site")
    if site is not None and site not in _OWN_SITES and not _is_navigation(method, headers):
        raise Refused(HTTPStatus.FORBIDDEN, f"Sec-Fetch-Site {site[:MAX_SHOWN]!r}: another site may not use this page")
    if method in SAFE_METHODS:
        return
    given = headers.get(TOKEN_HEADER)
    if given is None:
        raise Refused(HTTPStatus.FORBIDDEN, f"no {TOKEN_HEADER} header: only the page itself may do this")
    if not hmac.compare_digest(given.encode("utf-8", "replace"), token.encode()):
        raise Refused(HTTPStatus.FORBIDDEN, f"the {TOKEN_HEADER} is of another start of this page: load it again")


def _is_navigation(method: str, headers: Mapping[str, str]) -> bool:
    """Somebody follows a link to the page: it may be shown, and in no frame (the page forbids that)."""
    return (
        method in SAFE_METHODS
        and headers.get("sec-fetch-mode") == "navigate"
        and (headers.get("sec-fetch-dest") == "document")
    )
