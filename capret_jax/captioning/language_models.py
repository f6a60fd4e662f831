"""Language models to talk with: behind an OpenAI-compatible server, or here through transformers.

Phi-3's chat template has no place for a system message, and other models want roles to alternate:
so each prompt is one message of the user, and says all there is to know.
"""

import asyncio
import contextlib
import dataclasses
import os
import random
import time
import urllib.parse
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from capret_jax.errors import InputError
from capret_jax.request_batcher import Batcher

# Of a reply: a question or a sentence.
REPLY_TOKENS = 64
_LOCAL_BATCH = 32
# Seconds that a server may take to say what it has.
_PROBE = 10.0
# HTTP statuses of servers that are busy: request timeout, conflict, too many requests.
_FOR_NOW = (408, 409, 429)
# And of those that will be there: too many requests, bad gateway, unavailable, gateway timeout.
_NOT_YET = (429, 502, 503, 504)
_LONGEST_PAUSE = 60.0


class Completion(NamedTuple):
    """What a language model wrote, and the tokens it took."""

    text: str
    prompt_tokens: int
    completion_tokens: int


class NoReply(Exception):
    """A language model gave no reply, after all attempts; the message says why."""


LanguageModel = Callable[[str], Awaitable[Completion]]


@dataclasses.dataclass(frozen=True)
class ServerConfig:
    """How to treat a server.

    Attributes:
        workers: requests in flight.
        per_second: requests begun per second, at most; 0 for no limit.
        timeout: seconds to wait for a reply, whole.
        retries: of a request that failed, or was refused for now; with growing pauses, or those
            that the server asks for, at the pace of all requests.
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


class Server:
    """A server that speaks OpenAI's chat completions: vLLM, llama.cpp, and others."""

    def __init__(self, url: str, model: str = "", config: ServerConfig = ServerConfig()):
        """
        Args:
            url: of the API, "http://localhost:8000/v1"; the /v1 may be left out. The key, where
                one is needed, is in OPENAI_API_KEY.
            model: of those that the server has; empty for the first.
            config: how to treat it.

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
        # Servers that are no such servers answer with JSON of any shape, or none.
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
        base = _base(url)
        api_key = os.environ.get("OPENAI_API_KEY", "none")
        probe = openai.OpenAI(base_url=base, api_key=api_key, timeout=_PROBE, max_retries=1)
        try:
            models = [each.id for each in probe.models.list().data]
        except openai.APIConnectionError as error:
            raise InputError(
                f"--questioner={url} cannot be reached ({_reason(error)}): start the server, or "
                "mend the address."
            ) from error
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise InputError(
                f"--questioner={url} wants a key ({_reason(error)}): set OPENAI_API_KEY."
            ) from error
        except (openai.OpenAIError, AttributeError, TypeError, ValueError) as error:
            if getattr(error, "status_code", 0) in _NOT_YET:
                raise InputError(
                    f"--questioner={url} is not ready ({_reason(error)}): try again later."
                ) from error
            models = []  # it is there; not every server lists what it has
        finally:
            probe.close()
        if model and models and model not in models:
            raise InputError(f"--questioner={url} has {', '.join(models)}, not {model}.")
        self.name = model or next(iter(models), "default")
        # Retries are made here: the client's own would not keep the pace.
        self._client = openai.AsyncOpenAI(base_url=base, api_key=api_key, max_retries=0)

    async def __call__(self, prompt: str) -> Completion:
        """The reply to one message.

        Raises:
            NoReply: the server failed as often as it was asked, or its reply has another shape.
        """
        async with self._slots:
            for attempt in range(self._config.retries + 1):
                await self._pace()
                try:
                    # The client's own limit is on each of a reply's pieces.
                    async with asyncio.timeout(self._config.timeout):
                        return await self._ask(prompt)
                except self._errors as error:
                    pause = _pause_after(error, attempt)
                    if pause is None or attempt == self._config.retries:
                        raise NoReply(_reason(error)) from error
                await asyncio.sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    async def _ask(self, prompt: str) -> Completion:
        done = await self._client.chat.completions.create(
            model=self.name,
            messages=[{"role": "user", "content": prompt}],
            max_tokens=REPLY_TOKENS,
            temperature=0.0,
        )
        return _as_reply(done)

    async def close(self) -> None:
        """Ends all connections."""
        await self._client.close()


def _base(url: str) -> str:
    """The API's address."""
    try:
        parts = urllib.parse.urlsplit(url)
        if not parts.hostname or parts.port == 0:
            raise ValueError("no host, or port 0")
    except ValueError as error:
        raise InputError(f"--questioner={url} is no address ({error}).") from error
    return url if parts.path.strip("/") else url.rstrip("/") + "/v1"


def _pause_after(error: Exception, attempt: int) -> float | None:
    """Seconds to wait before another attempt; None when it would fail as well."""
    import openai

    pause = random.uniform(0.5, 1.0) * min(0.5 * 2**attempt, _LONGEST_PAUSE)
    if isinstance(error, openai.APIStatusError):
        if error.status_code not in _FOR_NOW and error.status_code < 500:
            return None
        with contextlib.suppress(KeyError, ValueError):  # none is asked for, or a date
            pause = float(error.response.headers["retry-after"])
        return min(max(pause, 0.0), _LONGEST_PAUSE)
    return pause if isinstance(error, TimeoutError | openai.APIConnectionError) else None


def _as_reply(done) -> Completion:
    """A chat completion's text and tokens; raises whatever its shape makes Python raise."""
    text = done.choices[0].message.content or ""
    if not isinstance(text, str):
        raise TypeError(f"the message is a {type(text).__name__}, not a text")
    # Not every server counts, and a good text is worth more than its price.
    counts = (getattr(done.usage, f"{kind}_tokens", 0) for kind in ("prompt", "completion"))
    return Completion(text, *(count if isinstance(count, int) else 0 for count in counts))


def _reason(error: BaseException) -> str:
    """The error and what it came from, in a line."""
    cause = f", {error.__cause__}" if error.__cause__ else ""
    return f"{type(error).__name__}: {error}{cause}".replace("\n", " ")[:200]


class _Pace:
    """Lets one pass at a time, some apart."""

    def __init__(self, per_second: float):
        self._gap = 1.0 / per_second if per_second else 0.0
        self._next = 0.0

    async def __call__(self) -> None:
        now = time.monotonic()
        wait, self._next = self._next - now, max(self._next, now) + self._gap
        if wait > 0:
            await asyncio.sleep(wait)


class Local:
    """A causal language model on this machine, through transformers and torch; in batches."""

    def __init__(self, path: str):
        """
        Args:
            path: folder or hub name of a model, Phi-3 for instance.

        Raises:
            InputError: torch is missing, or there is no such model.
        """
        try:
            import torch
            import transformers
        except ImportError as error:
            raise InputError(
                f"--questioner=transformers:{path} needs torch, which nothing else here does: "
                "pip install torch, or run the model behind a server."
            ) from error
        try:
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(path, padding_side="left")
            # On a GPU in the checkpoint's own precision, half of float32 for Phi-3.
            device = "cuda" if torch.cuda.is_available() else "cpu"
            dtype = "auto" if device == "cuda" else torch.float32
            model: Any = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
            self._model = model.to(device).eval()
        except (OSError, ValueError) as error:
            raise InputError(f"no language model at transformers:{path}: {error}") from error
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._torch, self.name = torch, path
        self._executor = ThreadPoolExecutor(1)
        self._batcher: Batcher[str, Completion] | None = None

    async def __call__(self, prompt: str) -> Completion:
        """The reply to one message; those that wait are answered together."""
        if self._batcher is None:
            self._batcher = Batcher(self._reply, self._executor, _LOCAL_BATCH, waiting=0)
            self._batcher.start()
        return await self._batcher(prompt)

    async def close(self) -> None:
        """Replies no more."""
        if self._batcher:
            await self._batcher.stop()
        self._executor.shutdown()

    def _reply(self, prompts: Sequence[str]) -> list[Completion]:
        tokens = self._tokenizer(
            [self._in_template(prompt) for prompt in prompts],
            return_tensors="pt",
            padding=True,
            add_special_tokens=self._tokenizer.chat_template is None,
        ).to(self._model.device)
        with self._torch.inference_mode():
            written = self._model.generate(
                **tokens,
                max_new_tokens=REPLY_TOKENS,
                do_sample=False,
                pad_token_id=self._tokenizer.pad_token_id,
            )[:, tokens["input_ids"].shape[1] :]
        texts = self._tokenizer.batch_decode(written, skip_special_tokens=True)
        read = tokens["attention_mask"].sum(dim=1).tolist()
        wrote = (written != self._tokenizer.pad_token_id).sum(dim=1).tolist()
        return [Completion(*each) for each in zip(texts, read, wrote, strict=True)]

    def _in_template(self, prompt: str) -> str:
        if self._tokenizer.chat_template is None:
            return prompt
        messages = [{"role": "user", "content": prompt}]
        return str(
            self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
        )


def open_language_model(
    source: str, model: str = "", config: ServerConfig = ServerConfig()
) -> Server | Local:
    """A server by its address, or "transformers:PATH".

    Raises:
        InputError: it is neither, cannot be reached, or is not there.
    """
    if source.startswith("transformers:"):
        return Local(source.removeprefix("transformers:"))
    if source.startswith(("http://", "https://")):
        return Server(source, model, config)
    raise InputError(
        f"--questioner={source} is neither script, nor the address of a server (http://...), nor "
        "transformers:PATH."
    )
