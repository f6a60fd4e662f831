"""Connections to servers with OpenAI's API: address, key, and the models that a server lists."""

import asyncio
import os
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

from capret_jax.captioning.reply_text import clean_line
from capret_jax.errors import InputError

if TYPE_CHECKING:
    import openai

# Time limit for the whole list of a server's models, in seconds.
_LIST_TIMEOUT = 10.0
# Longest name of a model, and longest description of an error, in characters.
_MAX_NAME_CHARS, _MAX_ERROR_CHARS = 100, 200
# Names of models in an error, at most.
_MAX_LISTED_NAMES = 10
# HTTP statuses of a server that is starting or busy: too many requests, bad gateway, unavailable,
# gateway timeout.
_NOT_READY_STATUSES = (429, 502, 503, 504)


class ChatAddress(NamedTuple):
    """The address of a server's API, and the key for it.

    Attributes:
        flag: the address as it was given, for errors.
        base_url: the address with its /v1.
        api_key: the key; "none" for none.
    """

    flag: str
    base_url: str
    api_key: str


def read_address(url: str) -> ChatAddress:
    """Checks an address, adds /v1 if it has no path, and reads the key in OPENAI_API_KEY.

    Raises:
        InputError: the URL is no address, or the key has characters that no header may have.
    """
    try:
        parts = urllib.parse.urlsplit(url)
        if not parts.hostname or parts.port == 0:
            raise ValueError("no host, or port 0")
    except ValueError as error:
        raise InputError(f"--questioner={url} is no address ({error}).") from error
    # A key that was read from a file ends with a line feed.
    api_key = os.environ.get("OPENAI_API_KEY", "").strip() or "none"
    if not (api_key.isascii() and api_key.isprintable() and " " not in api_key):
        raise InputError(
            "OPENAI_API_KEY has white space or other characters that no key has: copy it again."
        )
    return ChatAddress(url, url if parts.path.strip("/") else url.rstrip("/") + "/v1", api_key)


def open_client(address: ChatAddress, timeout: float) -> "openai.AsyncOpenAI":
    """Opens a client with the limits of `reply_limits`, which repeats no request.

    Raises:
        InputError: the openai package is missing.
    """
    try:
        import openai

        from capret_jax.captioning.reply_limits import open_http_client
    except ImportError as error:
        raise InputError(
            "a language model behind a server is reached with the openai package: "
            'pip install "capret_jax[captioning]".'
        ) from error
    return openai.AsyncOpenAI(
        base_url=address.base_url,
        api_key=address.api_key,
        max_retries=0,
        http_client=open_http_client(timeout),
    )


def choose_model(address: ChatAddress, wanted: str) -> str:
    """Returns the name of one of a server's models: the wanted one, or the first if that is empty.

    A server that does not list its models is taken to have the wanted one.

    Raises:
        InputError: the server cannot be reached, breaks a limit, or has no such model.
    """
    # In a thread of its own, since the caller's may have a running event loop.
    with ThreadPoolExecutor(1) as thread:
        names = thread.submit(asyncio.run, _list_models(address)).result()
    if wanted and names and wanted not in names:
        listed = ", ".join(names[:_MAX_LISTED_NAMES])
        more = len(names) - _MAX_LISTED_NAMES
        listed += f" and {more} more" if more > 0 else ""
        raise InputError(f"--questioner={address.flag} has {listed}, not {wanted}.")
    return wanted or next(iter(names), "default")


async def _list_models(address: ChatAddress) -> list[str]:
    """Returns the names of a server's models; empty if the server does not list them."""
    client = open_client(address, _LIST_TIMEOUT)
    import openai

    from capret_jax.captioning.reply_limits import RefusedReply

    flag = f"--questioner={address.flag}"
    try:
        async with asyncio.timeout(_LIST_TIMEOUT):
            models = (await client.models.list()).data
        names = [model.id for model in models if isinstance(model.id, str)]
        return [name for name in names if name == clean_line(name, _MAX_NAME_CHARS) != ""]
    except RefusedReply as error:
        reason = clean_line(str(error), _MAX_ERROR_CHARS)
        raise InputError(f"{flag}: {reason}.") from error
    except (openai.APIConnectionError, TimeoutError) as error:
        raise InputError(
            f"{flag} cannot be reached ({describe_error(error)}): start the server, or correct "
            "the address."
        ) from error
    except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
        raise InputError(
            f"{flag} wants a key ({describe_error(error)}): set OPENAI_API_KEY."
        ) from error
    except (openai.OpenAIError, AttributeError, RecursionError, TypeError, ValueError) as error:
        if getattr(error, "status_code", 0) in _NOT_READY_STATUSES:
            raise InputError(
                f"{flag} is not ready ({describe_error(error)}): try again later."
            ) from error
        return []
    finally:
        await client.close()


def describe_error(error: BaseException) -> str:
    """Formats an error and its cause as one line, without what a terminal would obey."""
    cause = f", {error.__cause__}" if error.__cause__ else ""
    return clean_line(f"{type(error).__name__}: {error}{cause}", _MAX_ERROR_CHARS)
