"""The client of chat servers: retries, limits, and malformed replies."""

import asyncio
import dataclasses
import socket
import time

import pytest

from capret_jax.captioning.chat_client import ChatClient, ServerConfig
from capret_jax.captioning.language_model import NoReply
from capret_jax.errors import InputError

QUICK = ServerConfig(workers=4, timeout=0.4, retries=2)


def complete(url: str, *prompts: str, config=QUICK):
    async def run():
        model = ChatClient(url, config=config)
        try:
            return await asyncio.gather(*map(model, prompts), return_exceptions=True)
        finally:
            await model.close()

    return asyncio.run(run())


def test_completion_has_text_and_token_counts(serve):
    server = serve(lambda prompt, number: f"reply to {prompt}")
    assert complete(server.url, "a", "b") == [("reply to a", 100, 10), ("reply to b", 100, 10)]


def test_v1_is_added_and_the_first_model_is_the_default(serve):
    server = serve()
    model = ChatClient(server.url.removesuffix("/v1"))
    assert model.name == "tiny"
    asyncio.run(model.close())


@pytest.mark.parametrize("failure", [500, 429, 0.8], ids=["error", "busy", "hang"])
def test_temporary_failures_are_retried(serve, failure):
    server = serve(lambda prompt, number: failure if number == 1 else "at last")
    assert complete(server.url, "a")[0].text == "at last"
    assert server.requests == 2


def test_retries_keep_the_pace(serve):
    server = serve(lambda prompt, number: 429 if number <= 4 else "yes")
    config = dataclasses.replace(QUICK, workers=2, per_second=4.0, timeout=5.0, retries=4)
    start = time.perf_counter()
    assert [reply.text for reply in complete(server.url, "a", "b", config=config)] == ["yes"] * 2
    assert server.requests == 6 and time.perf_counter() - start >= 5 / 4


def test_permanent_failures_are_not_retried(serve):
    server = serve(lambda prompt, number: 404)
    assert isinstance(complete(server.url, "a")[0], NoReply)
    assert server.requests == 1


def test_retry_after_is_respected(serve):
    server = serve(lambda prompt, number: (503, "1") if number == 1 else "yes")
    start = time.perf_counter()
    assert complete(server.url, "a")[0].text == "yes"
    assert time.perf_counter() - start >= 1.0


def test_timeout_holds_for_the_whole_reply(serve):
    server = serve(lambda prompt, number: iter("never ends" * 10))
    start = time.perf_counter()
    (reply,) = complete(server.url, "a", config=dataclasses.replace(QUICK, retries=0))
    assert isinstance(reply, NoReply) and time.perf_counter() - start < 3


@pytest.mark.parametrize(
    "values",
    [{"workers": 0}, {"timeout": 0.0}, {"per_second": -1.0}, {"retries": -1}],
    ids=str,
)
def test_impossible_settings_are_refused(values):
    with pytest.raises(InputError, match=f"--{next(iter(values))}="):
        ServerConfig(**values)


def completion(**changes) -> dict:
    """The body of a chat completion with some parts replaced."""
    message = {"role": "assistant", "content": changes.get("content", "yes")}
    choices = changes.get("choices", [{"index": 0, "message": message}])
    return {"id": "x", "model": "tiny", "choices": choices, "usage": changes.get("usage")}


@pytest.mark.parametrize(
    "failure",
    [
        500,
        0.8,
        {"error": "odd"},
        completion(choices=[]),
        completion(choices={"message": "yes"}),
        completion(content=[{"type": "text", "text": "yes"}]),
        completion(content=7),
    ],
    ids=str,
)
def test_repeated_failures_are_no_reply(serve, failure):
    (reply,) = complete(serve(lambda prompt, number: failure).url, "a")
    assert isinstance(reply, NoReply)


@pytest.mark.parametrize("usage", [None, {}, "many", {"prompt_tokens": None}], ids=str)
def test_reply_without_token_counts_is_used(serve, usage):
    server = serve(lambda prompt, number: completion(usage=usage))
    assert complete(server.url, "a") == [("yes", 0, 0)]


def test_requests_are_paced(serve):
    server = serve(lambda prompt, number: "yes")
    start = time.perf_counter()
    complete(server.url, *"abcdef", config=dataclasses.replace(QUICK, per_second=20.0, timeout=5.0))
    assert time.perf_counter() - start >= 5 / 20


def test_unreachable_server_is_an_input_error():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(InputError, match=f"--questioner={address} cannot be reached"):
        ChatClient(address)


@pytest.mark.parametrize("url", ["http://localhost:abc/v1", "http://[bad/v1", "http:///v1"])
def test_invalid_address_is_an_input_error(url):
    with pytest.raises(InputError, match="is no address"):
        ChatClient(url)


def test_model_that_the_server_lacks_is_an_input_error(serve):
    with pytest.raises(InputError, match="has tiny, not phi"):
        ChatClient(serve().url, "phi")
