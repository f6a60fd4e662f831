"""ASGI middleware: requests that are too large are refused, and all of them are timed.

Plain ASGI, since Starlette's BaseHTTPMiddleware swallows what is raised while a body is read.
"""

import time
from collections.abc import Callable

from fastapi import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class BodyLimit:
    """A body over the limit is answered with 413, before it is read or while it is."""

    def __init__(self, app: ASGIApp, limit: int):
        """`limit`: bytes."""
        self._app, self._limit = app, limit
        self._reason = f"the request is larger than {limit / 2**20:.1f} MB"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if not declared.isdigit() or int(declared) > self._limit:
            await self._refuse(send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._limit:
                # Of all that a body's parser may meet, FastAPI lets this alone pass as it is.
                raise HTTPException(413, self._reason)
            return message

        await self._app(scope, counted, send)

    async def _refuse(self, send: Send) -> None:
        body = b'{"detail":"%s"}' % self._reason.encode()
        headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 413, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class Timed:
    """Tells how long each request took."""

    def __init__(self, app: ASGIApp, observe: Callable[[str, int, float], None]):
        """`observe`: (route, status, seconds); "other" for what is no route."""
        self._app, self._observe = app, observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            route = scope.get("route")  # not the path: anybody can make up paths
            name = route.path if route else "other"
            self._observe(name, status, time.perf_counter() - start)
