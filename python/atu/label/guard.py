"""Who may ask: pages of this server alone, opened with the link that the terminal shows.

Every request: the Host is this server's address (no other name that was made to point here), the Origin, where the
browser tells one, is this server's, and the cookie is the one that the one-time link gave. Answers forbid the page to
load anything from elsewhere. Bodies have a limit.
"""

from __future__ import annotations

import hmac
import secrets
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MOST_BYTES = 2**20
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
# A refresh, not a redirect: after a link from another program a browser would not yet send a SameSite=Strict cookie.
WELCOME = """<!doctype html>
<html lang="en">
<title>atu label</title>
<link rel="icon" href="/static/icon.svg">
<meta http-equiv="refresh" content="0;url=/">
</html>
"""
USED = "This link was used already, or is not of this session. Start atu label again for a new one.\n"


class TooLarge(Exception):
    """The body is larger than MOST_BYTES: raised where it is read."""


class Guard:
    """ASGI middleware. port: of 127.0.0.1. `token` opens the page once."""

    def __init__(self, app: ASGIApp, port: int):
        self.app = app
        self.hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}
        self.name, self.key = f"atu_label_{port}", secrets.token_urlsafe(32)
        self.token: str | None = secrets.token_urlsafe(32)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":  # no web sockets here
            return None
        headers = Headers(scope=scope)
        answer = self._refusal(scope, headers) or self._entrance(scope, headers)
        if answer is not None:
            return await answer(scope, receive, _with_headers(send))
        return await self.app(scope, _limited(receive), _with_headers(send))

    def _refusal(self, scope: Scope, headers: Headers) -> Response | None:
        hosts, origins = headers.getlist("host"), headers.getlist("origin")
        if len(hosts) != 1 or hosts[0] not in self.hosts:
            return PlainTextResponse("wrong Host\n", 403)
        writes = scope["method"] not in ("GET", "HEAD")
        if (writes or origins) and origins != [f"http://{hosts[0]}"]:
            return PlainTextResponse("wrong Origin\n", 403)
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > MOST_BYTES:
            return PlainTextResponse("too large\n", 413)
        return None

    def _entrance(self, scope: Scope, headers: Headers) -> Response | None:
        """An answer unless the request has the cookie: the cookie for the one-time token, else a refusal."""
        if self._knows(headers.getlist("cookie")):
            return None
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if scope["path"] != "/" or not self._spend(given):
            return PlainTextResponse(USED, 403)
        answer = HTMLResponse(WELCOME)
        answer.set_cookie(self.name, self.key, httponly=True, samesite="strict", path="/")
        return answer

    def _spend(self, given: str) -> bool:
        if self.token is None or not _same(given, self.token):
            return False
        self.token = None
        return True

    def _knows(self, cookies: list[str]) -> bool:
        # Not by http.cookies, which stops at what other servers of this machine may have set: name=Jane Doe.
        found = cookie_parser("; ".join(cookies)).get(self.name)
        return found is not None and _same(found, self.key)


def _same(a: str, b: str) -> bool:
    return hmac.compare_digest(a.encode(), b.encode())


def _with_headers(send: Send) -> Send:
    """Add the headers that every answer has; an answer's own policy stays."""

    async def answer(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers.setdefault("content-security-policy", POLICY)
            headers.setdefault("cache-control", "no-store")
            headers["x-content-type-options"] = "nosniff"
            headers["referrer-policy"] = "no-referrer"
            headers["cross-origin-resource-policy"] = "same-origin"
            headers["cross-origin-opener-policy"] = "same-origin"
        await send(message)

    return answer


def _limited(receive: Receive) -> Receive:
    """The body, chunk by chunk, up to MOST_BYTES; a body may come without telling its length."""
    seen = 0

    async def take() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > MOST_BYTES:
            raise TooLarge
        return message

    return take
