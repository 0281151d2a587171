"""Who may use the live page: its own browser page, and nobody else's."""

from __future__ import annotations

from http import HTTPStatus

import pytest

from fencepost_testing.own_requests import Refused
from fencepost_ui.guard import TOKEN_HEADER, check_request

PORT = 8123
TOKEN = "secret"
OWN = {"host": f"127.0.0.1:{PORT}"}
SAME = {"origin": f"http://127.0.0.1:{PORT}", "sec-fetch-site": "same-origin"}


@pytest.mark.parametrize(
    ("method", "headers"),
    [
        ("GET", OWN),
        ("GET", {"host": f"localhost:{PORT}"}),
        ("GET", {"host": f"[::1]:{PORT}"}),
        ("GET", {**OWN, **SAME}),
        ("GET", {**OWN, "sec-fetch-site": "none", "sec-fetch-mode": "navigate"}),
        ("GET", {**OWN, "sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}),
        ("POST", {**OWN, **SAME, TOKEN_HEADER: TOKEN}),
        ("POST", {**OWN, TOKEN_HEADER: TOKEN}),
    ],
)
def test_the_page_itself_may_ask(method: str, headers: dict[str, str]) -> None:
    check_request(method, headers, PORT, TOKEN)


@pytest.mark.parametrize(
    ("method", "headers", "status", "told"),
    [
        ("GET", {}, 421, "Host ''"),
        ("GET", {"host": "127.0.0.1"}, 421, "Host '127.0.0.1'"),
        ("GET", {"host": f"127.0.0.1:{PORT + 1}"}, 421, f"127.0.0.1:{PORT + 1}"),
        ("GET", {"host": f"evil.example:{PORT}"}, 421, "evil.example"),
        ("GET", {"host": f"127.0.0.1.evil.example:{PORT}"}, 421, "evil.example"),
        ("GET", {**OWN, "origin": "http://evil.example"}, 403, "Origin 'http://evil.example'"),
        ("GET", {**OWN, "origin": "null"}, 403, "Origin 'null'"),
        ("GET", {**OWN, "origin": f"https://127.0.0.1:{PORT}"}, 403, "https://"),
        ("GET", {**OWN, "sec-fetch-site": "cross-site", "sec-fetch-mode": "cors"}, 403, "cross-site"),
        ("GET", {**OWN, "sec-fetch-site": "same-site", "sec-fetch-mode": "no-cors"}, 403, "same-site"),
        (
            "GET",
            {**OWN, "sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"},
            403,
            "cross-site",
        ),
        (
            "POST",
            {**OWN, "sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"},
            403,
            "cross-site",
        ),
        ("POST", {**OWN, **SAME}, 403, f"no {TOKEN_HEADER} header"),
        ("POST", {**OWN, **SAME, TOKEN_HEADER: "wrong"}, 403, "of another start of this page"),
        ("POST", {**OWN, **SAME, TOKEN_HEADER: "sécret"}, 403, "of another start of this page"),
        ("DELETE", {**OWN, **SAME}, 403, f"no {TOKEN_HEADER} header"),
        ("POST", {**OWN, "origin": "http://evil.example", TOKEN_HEADER: TOKEN}, 403, "evil.example"),
    ],
)
def test_another_sites_request_is_refused_with_the_value(
    method: str, headers: dict[str, str], status: int, told: str
) -> None:
    with pytest.raises(Refused) as refused:
        check_request(method, headers, PORT, TOKEN)
    assert refused.value.status == HTTPStatus(status)
    assert told in str(refused.value)
