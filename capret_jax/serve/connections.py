"""Limits the time that a connection may stay open without a whole request."""

import asyncio

from uvicorn.protocols.http.auto import AutoHTTPProtocol


class LimitedConnection(AutoHTTPProtocol):  # type: ignore[valid-type, misc]
    """Closes connections of which no byte, or no whole header of a request, arrives in time.

    Uvicorn's own limit, `timeout_keep_alive`, starts after a first response and ends with the next
    byte. The body of a request has the limit of `middleware.BodyLimit`.

    Attributes:
        first_byte_seconds: limit from a new connection to its first byte. Browsers and proxies
            open connections that they use later.
        header_seconds: limit from the first byte of a request to the end of its header.
    """

    first_byte_seconds: float = 75.0
    header_seconds: float = 10.0
    _deadline: asyncio.TimerHandle | None = None
    _has_received: bool = False

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Starts the first limit."""
        super().connection_made(transport)
        self._start(self.first_byte_seconds)

    def data_received(self, data: bytes) -> None:
        """Starts the second limit with a request's first byte, and ends it with its header."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._cancel()
        elif self._deadline is None or not self._has_received:
            self._start(self.header_seconds)
        self._has_received = True

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the limits."""
        self._cancel()
        super().connection_lost(exc)

    def _start(self, seconds: float) -> None:
        self._cancel()
        self._deadline = self.loop.call_later(seconds, self.transport.close)

    def _cancel(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
