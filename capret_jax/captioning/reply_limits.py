"""Limits of what a chat server may send: its length, its encoding, and no redirects.

The time limit is the caller's: `asyncio.timeout` around a request also ends a server that sends a
byte a second, which a client's own timeouts, one for each read, never do.
"""

from collections.abc import AsyncIterator

import httpx2

# Longest body of a reply, in bytes: a thousand times that of a question or a caption.
MAX_BODY_BYTES = 1_000_000


class RefusedReply(Exception):
    """Error: a reply breaks a limit, as another one to the same request would."""


def open_http_client(timeout: float) -> httpx2.AsyncClient:
    """Opens a client that stops replies which break the limits.

    Args:
        timeout: seconds to connect, and for each read; not for a whole reply.
    """
    return httpx2.AsyncClient(
        # A compressed body could be a thousand times as long when it is unpacked.
        headers={"Accept-Encoding": "identity"},
        timeout=timeout,
        follow_redirects=False,
        event_hooks={"response": [_limit_response]},
    )


async def _limit_response(response: httpx2.Response) -> None:
    """Refuses a response by its headers, or limits the length of its body.

    Raises:
        RefusedReply: the response is a redirect, or compressed.
    """
    if response.has_redirect_location:
        raise RefusedReply(
            f"it redirects to {response.headers['location'][:100]}, which is not followed: set "
            "--questioner to the final address"
        )
    if (encoding := response.headers.get("content-encoding", "identity")) != "identity":
        raise RefusedReply(
            f"a reply has the Content-Encoding {encoding[:20]}, which was not asked for: turn off "
            "the server's compression"
        )
    assert isinstance(response.stream, httpx2.AsyncByteStream)
    response.stream = _LimitedStream(response.stream)


class _LimitedStream(httpx2.AsyncByteStream):
    """The body of a response; reading it stops after `MAX_BODY_BYTES`."""

    def __init__(self, stream: httpx2.AsyncByteStream):
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        count = 0
        async for chunk in self._stream:
            count += len(chunk)
            if count > MAX_BODY_BYTES:
                raise RefusedReply(
                    f"a reply is longer than {MAX_BODY_BYTES:,} bytes: set --questioner to the "
                    "address of a chat server"
                )
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()
