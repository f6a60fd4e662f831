"""ASGI middleware that limits the size of requests and measures their duration.

Plain ASGI, since Starlette's BaseHTTPMiddleware swallows exceptions raised while a body is read.
"""

import asyncio
import time
from collections.abc import Callable

from fastapi import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class BodyLimit:
    """Limits the size of requests and the time in which they have to arrive.

    Larger requests are answered with 413, before or while their body is read, and slower ones with
    408.
    """

    def __init__(self, app: ASGIApp, limit: int, seconds: float):
        """
        Args:
            app: application to call.
            limit: bytes that a body may have.
            seconds: time from a request's header to the end of its body.
        """
        self._app, self._limit, self._seconds = app, limit, seconds
        self._reason = f"the request is larger than {limit / 2**20:.1f} MB"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles a connection, as the ASGI specification defines."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if not declared.isdigit() or int(declared) > self._limit:
            await self._refuse(send)
            return
        received, complete = 0, False
        deadline = time.monotonic() + self._seconds

        async def limited_receive() -> Message:
            nonlocal received, complete
            if complete:
                return await receive()  # waits until the client is gone
            try:
                message = await asyncio.wait_for(receive(), deadline - time.monotonic())
            except TimeoutError as error:
                reason = f"the request did not arrive within {self._seconds:g} seconds"
                raise HTTPException(408, reason, {"connection": "close"}) from error
            complete = not message.get("more_body", False)
            received += len(message.get("body", b""))
            if received > self._limit:
                # FastAPI answers with 400 to other exceptions raised while it parses a body.
                raise HTTPException(413, self._reason)
            return message

        await self._app(scope, limited_receive, send)

    async def _refuse(self, send: Send) -> None:
        body = b'{"detail":"%s"}' % self._reason.encode()
        headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 413, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class SecurityHeaders:
    """Adds headers to every response that keep browsers from guessing, framing and leaking."""

    def __init__(self, app: ASGIApp, policy: str):
        """
        Args:
            app: application to call.
            policy: Content-Security-Policy of the pages.
        """
        self._app = app
        self._headers = [
            (b"content-security-policy", policy.encode()),
            (b"x-content-type-options", b"nosniff"),
            (b"x-frame-options", b"DENY"),
            (b"referrer-policy", b"no-referrer"),
            (b"cross-origin-opener-policy", b"same-origin"),
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles a connection, as the ASGI specification defines."""

        async def adding_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", []), *self._headers]
                message = {**message, "headers": headers}
            await send(message)

        await self._app(scope, receive, adding_send if scope["type"] == "http" else send)


class RequestTimer:
    """Reports the duration of each request."""

    def __init__(self, app: ASGIApp, observe: Callable[[str, int, float], None]):
        """
        Args:
            app: application to call.
            observe: called with route, status and seconds; the route is "other" for unknown paths.
        """
        self._app, self._observe = app, observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles a connection, as the ASGI specification defines."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500

        async def recording_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, recording_send)
        finally:
            route = scope.get("route")  # not the path: clients may send any number of paths
            name = route.path if route else "other"
            self._observe(name, status, time.perf_counter() - start)
