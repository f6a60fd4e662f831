"""A client of servers with OpenAI's chat completions API: vLLM, llama.cpp, and others."""

import asyncio
import contextlib
import dataclasses
import os
import random
import time
import urllib.parse

from capret_jax.captioning.language_model import MAX_COMPLETION_TOKENS, Completion, NoReply
from capret_jax.errors import InputError

# Time limit for a server to list its models, in seconds.
_PROBE_TIMEOUT = 10.0
# HTTP statuses below 500 after which a request is repeated: request timeout, conflict, too many
# requests.
_RETRY_STATUSES = (408, 409, 429)
# HTTP statuses of a server that is starting or busy: too many requests, bad gateway, unavailable,
# gateway timeout.
_NOT_READY_STATUSES = (429, 502, 503, 504)
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
        try:
            import openai
        except ImportError as error:
            raise InputError(
                "a language model behind a server is reached with the openai package: "
                'pip install "capret_jax[captioning]".'
            ) from error
        self._config, self._pace = config, _Pace(config.per_second)
        # Another kind of server may reply with JSON of any structure, or with other text.
        self._errors = (
            openai.OpenAIError,
            AttributeError,
            IndexError,
            KeyError,
            TimeoutError,
            TypeError,
            ValueError,
        )
        self._slots = asyncio.Semaphore(config.workers)
        base_url = _api_url(url)
        api_key = os.environ.get("OPENAI_API_KEY", "none")
        models = _list_models(url, base_url, api_key)
        if model and models and model not in models:
            raise InputError(f"--questioner={url} has {', '.join(models)}, not {model}.")
        self.name = model or next(iter(models), "default")
        # Retries are made here: those of the client would ignore the rate limit.
        self._client = openai.AsyncOpenAI(base_url=base_url, api_key=api_key, max_retries=0)

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
                        raise NoReply(_describe_error(error)) from error
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


def _api_url(url: str) -> str:
    """Adds /v1 to a URL without a path."""
    try:
        parts = urllib.parse.urlsplit(url)
        if not parts.hostname or parts.port == 0:
            raise ValueError("no host, or port 0")
    except ValueError as error:
        raise InputError(f"--questioner={url} is no address ({error}).") from error
    return url if parts.path.strip("/") else url.rstrip("/") + "/v1"


def _list_models(url: str, base_url: str, api_key: str) -> list[str]:
    """Returns the names of a server's models; empty if the server does not list them."""
    import openai

    probe = openai.OpenAI(base_url=base_url, api_key=api_key, timeout=_PROBE_TIMEOUT, max_retries=1)
    try:
        return [model.id for model in probe.models.list().data]
    except openai.APIConnectionError as error:
        raise InputError(
            f"--questioner={url} cannot be reached ({_describe_error(error)}): start the server, "
            "or correct the address."
        ) from error
    except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
        raise InputError(
            f"--questioner={url} wants a key ({_describe_error(error)}): set OPENAI_API_KEY."
        ) from error
    except (openai.OpenAIError, AttributeError, TypeError, ValueError) as error:
        if getattr(error, "status_code", 0) in _NOT_READY_STATUSES:
            raise InputError(
                f"--questioner={url} is not ready ({_describe_error(error)}): try again later."
            ) from error
        return []
    finally:
        probe.close()


def _pause_after(error: Exception, attempt: int) -> float | None:
    """Returns the seconds to wait before another attempt; None if that would fail as well."""
    import openai

    pause = random.uniform(0.5, 1.0) * min(0.5 * 2**attempt, _MAX_PAUSE)
    if isinstance(error, openai.APIStatusError):
        if error.status_code not in _RETRY_STATUSES and error.status_code < 500:
            return None
        with contextlib.suppress(KeyError, ValueError):  # no such header, or a date in it
            pause = float(error.response.headers["retry-after"])
        return min(max(pause, 0.0), _MAX_PAUSE)
    return pause if isinstance(error, TimeoutError | openai.APIConnectionError) else None


def _parse_response(response) -> Completion:
    """Parses a chat completion; for any other structure, raises what Python raises for it."""
    text = response.choices[0].message.content or ""
    if not isinstance(text, str):
        raise TypeError(f"the message is a {type(text).__name__}, not a text")
    # Some servers do not count tokens.
    counts = (getattr(response.usage, f"{kind}_tokens", 0) for kind in ("prompt", "completion"))
    return Completion(text, *(count if isinstance(count, int) else 0 for count in counts))


def _describe_error(error: BaseException) -> str:
    """Formats an error and its cause as one line."""
    cause = f", {error.__cause__}" if error.__cause__ else ""
    return f"{type(error).__name__}: {error}{cause}".replace("\n", " ")[:200]


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
