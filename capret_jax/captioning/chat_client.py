"""A client of servers with OpenAI's chat completions API: vLLM, llama.cpp, and others."""

import asyncio
import contextlib
import dataclasses
import math
import random
import time

from capret_jax.captioning.chat_connection import (
    choose_model,
    describe_error,
    open_client,
    read_address,
)
from capret_jax.captioning.language_model import MAX_COMPLETION_TOKENS, Completion, NoReply
from capret_jax.captioning.reply_text import clean_reply
from capret_jax.errors import InputError

# A count of tokens above this is no count.
_MAX_TOKEN_COUNT = 1_000_000_000
# HTTP statuses below 500 after which a request is repeated: request timeout, conflict, too many
# requests.
_RETRY_STATUSES = (408, 409, 429)
# Longest pause before a repetition, in seconds.
_MAX_PAUSE = 60.0


@dataclasses.dataclass(frozen=True)
class ServerConfig:
    """Limits of the requests to a server.

    Attributes:
        workers: requests in flight.
        per_second: requests begun per second, at most; 0 for no limit.
        timeout: seconds until the whole reply must have arrived.
        retries: repetitions of a request that failed or was refused temporarily. The pauses
            between them grow, or are as long as the server demands; `per_second` holds for
            repetitions too.
    """

    workers: int = 32
    per_second: float = 0.0
    timeout: float = 60.0
    retries: int = 4

    def __post_init__(self):
        if self.workers < 1 or self.timeout <= 0:
            raise InputError(
                f"--workers={self.workers} and --timeout={self.timeout} must be positive."
            )
        if self.per_second < 0 or self.retries < 0:
            raise InputError(
                f"--per_second={self.per_second} and --retries={self.retries} must not be negative."
            )


class ChatClient:
    """A language model behind a server with OpenAI's chat completions API.

    Attributes:
        name: the model's name at the server.
    """

    def __init__(self, url: str, model: str = "", config: ServerConfig = ServerConfig()):
        """
        Args:
            url: address of the API, "http://localhost:8000/v1"; the /v1 may be left out. The key,
                where one is needed, is in OPENAI_API_KEY.
            model: name of one of the server's models; empty for the first.
            config: limits of the requests.

        Raises:
            InputError: the server cannot be reached, or has no such model.
        """
        self._config, self._pace = config, _Pace(config.per_second)
        address = read_address(url)
        self.name = choose_model(address, model)
        # Retries are made here: those of the client would ignore the rate limit.
        self._client = open_client(address, config.timeout)
        self._errors = _reply_errors()
        self._slots = asyncio.Semaphore(config.workers)

    async def __call__(self, prompt: str) -> Completion:
        """Completes one prompt, sent as one message of the user.

        Raises:
            NoReply: all attempts failed, or the reply is not a chat completion.
        """
        async with self._slots:
            for attempt in range(self._config.retries + 1):
                await self._pace()
                try:
                    # The timeout of the client applies to each chunk of a reply, not to all of it.
                    async with asyncio.timeout(self._config.timeout):
                        return await self._complete(prompt)
                except self._errors as error:
                    pause = _pause_after(error, attempt)
                    if pause is None or attempt == self._config.retries:
                        raise NoReply(describe_error(error)) from error
                await asyncio.sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    async def _complete(self, prompt: str) -> Completion:
        response = await self._client.chat.completions.create(
            model=self.name,
            messages=[{"role": "user", "content": prompt}],
            max_tokens=MAX_COMPLETION_TOKENS,
            temperature=0.0,
        )
        return _parse_response(response)

    async def close(self) -> None:
        """Closes all connections."""
        await self._client.close()


def _reply_errors() -> tuple[type[Exception], ...]:
    """Returns the errors of a request: other programs reply with JSON of any structure, or text."""
    import openai

    from capret_jax.captioning.reply_limits import RefusedReply

    expected = (openai.OpenAIError, RefusedReply, TimeoutError)
    return (*expected, AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError)


def _pause_after(error: Exception, attempt: int) -> float | None:
    """Returns the seconds to wait before another attempt; None if that would fail as well."""
    import openai

    pause = random.uniform(0.5, 1.0) * min(0.5 * 2**attempt, _MAX_PAUSE)
    if isinstance(error, openai.APIStatusError):
        if error.status_code not in _RETRY_STATUSES and error.status_code < 500:
            return None
        with contextlib.suppress(KeyError, ValueError):  # no such header, or a date in it
            demanded = float(error.response.headers["retry-after"])
            pause = demanded if math.isfinite(demanded) else _MAX_PAUSE
        return min(max(pause, 0.0), _MAX_PAUSE)
    return pause if isinstance(error, TimeoutError | openai.APIConnectionError) else None


def _parse_response(response) -> Completion:
    """Parses a chat completion; for any other structure, raises what Python raises for it."""
    text = response.choices[0].message.content or ""
    if not isinstance(text, str):
        raise TypeError(f"the message is a {type(text).__name__}, not a text")
    usage = response.usage
    counts = (_token_count(usage, f"{kind}_tokens") for kind in ("prompt", "completion"))
    return Completion(clean_reply(text), *counts)


def _token_count(usage: object, name: str) -> int:
    """Returns a count of tokens; 0 where a server does not count them, or sends something else."""
    count = getattr(usage, name, 0)
    return count if type(count) is int and 0 <= count <= _MAX_TOKEN_COUNT else 0


class _Pace:
    """Rate limiter: delays callers."""

    def __init__(self, per_second: float):
        self._gap = 1.0 / per_second if per_second else 0.0
        self._next = 0.0

    async def __call__(self) -> None:
        """Waits until this caller may begin a request."""
        now = time.monotonic()
        wait, self._next = self._next - now, max(self._next, now) + self._gap
        if wait > 0:
            await asyncio.sleep(wait)
