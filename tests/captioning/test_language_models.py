"""Language models behind a server that has its days, and one on this machine."""

import asyncio
import dataclasses
import socket
import time

import pytest

from capret_jax.captioning.language_models import (
    NoReply,
    Server,
    ServerConfig,
    open_language_model,
)
from capret_jax.errors import InputError

QUICK = ServerConfig(workers=4, timeout=0.4, retries=2)


def ask(url: str, *prompts: str, config=QUICK):
    async def run():
        model = Server(url, config=config)
        try:
            return await asyncio.gather(*map(model, prompts), return_exceptions=True)
        finally:
            await model.close()

    return asyncio.run(run())


def test_a_reply_comes_with_its_tokens(serve):
    server = serve(lambda prompt, number: f"reply to {prompt}")
    assert ask(server.url, "a", "b") == [("reply to a", 100, 10), ("reply to b", 100, 10)]


def test_the_v1_may_be_left_out_and_the_first_model_is_taken(serve):
    server = serve()
    model = Server(server.url.removesuffix("/v1"))
    assert model.name == "tiny"
    asyncio.run(model.close())


@pytest.mark.parametrize("trouble", [500, 429, 0.8], ids=["error", "busy", "hang"])
def test_what_fails_is_asked_again(serve, trouble):
    server = serve(lambda prompt, number: trouble if number == 1 else "at last")
    assert ask(server.url, "a")[0].text == "at last"
    assert server.requests == 2


def test_retries_keep_the_pace(serve):
    server = serve(lambda prompt, number: 429 if number <= 4 else "yes")
    config = dataclasses.replace(QUICK, workers=2, per_second=4.0, timeout=5.0, retries=4)
    start = time.perf_counter()
    assert [reply.text for reply in ask(server.url, "a", "b", config=config)] == ["yes"] * 2
    assert server.requests == 6 and time.perf_counter() - start >= 5 / 4


def test_what_will_fail_again_is_not_asked_again(serve):
    server = serve(lambda prompt, number: 404)
    assert isinstance(ask(server.url, "a")[0], NoReply)
    assert server.requests == 1


def test_a_server_waits_as_long_as_it_wants(serve):
    server = serve(lambda prompt, number: (503, "1") if number == 1 else "yes")
    start = time.perf_counter()
    assert ask(server.url, "a")[0].text == "yes"
    assert time.perf_counter() - start >= 1.0


def test_a_reply_in_drops_has_a_limit_as_a_whole(serve):
    server = serve(lambda prompt, number: iter("never ends" * 10))
    start = time.perf_counter()
    (found,) = ask(server.url, "a", config=dataclasses.replace(QUICK, retries=0))
    assert isinstance(found, NoReply) and time.perf_counter() - start < 3


@pytest.mark.parametrize(
    "values",
    [{"workers": 0}, {"timeout": 0.0}, {"per_second": -1.0}, {"retries": -1}],
    ids=str,
)
def test_impossible_settings_are_refused(values):
    with pytest.raises(InputError, match=f"--{next(iter(values))}="):
        ServerConfig(**values)


def odd(**changes) -> dict:
    """A completion with something else in place of a part of it."""
    message = {"role": "assistant", "content": changes.get("content", "yes")}
    choices = changes.get("choices", [{"index": 0, "message": message}])
    return {"id": "x", "model": "tiny", "choices": choices, "usage": changes.get("usage")}


@pytest.mark.parametrize(
    "trouble",
    [
        500,
        0.8,
        {"error": "odd"},
        odd(choices=[]),
        odd(choices={"message": "yes"}),
        odd(content=[{"type": "text", "text": "yes"}]),
        odd(content=7),
    ],
    ids=str,
)
def test_what_keeps_failing_is_no_reply(serve, trouble):
    (found,) = ask(serve(lambda prompt, number: trouble).url, "a")
    assert isinstance(found, NoReply)


@pytest.mark.parametrize("usage", [None, {}, "many", {"prompt_tokens": None}], ids=str)
def test_a_reply_counts_even_where_its_tokens_are_not(serve, usage):
    server = serve(lambda prompt, number: odd(usage=usage))
    assert ask(server.url, "a") == [("yes", 0, 0)]


def test_requests_are_paced(serve):
    server = serve(lambda prompt, number: "yes")
    start = time.perf_counter()
    ask(server.url, *"abcdef", config=dataclasses.replace(QUICK, per_second=20.0, timeout=5.0))
    assert time.perf_counter() - start >= 5 / 20


def test_a_server_that_is_not_there_is_one_clear_error():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(InputError, match=f"--questioner={address} cannot be reached"):
        Server(address)


@pytest.mark.parametrize("url", ["http://localhost:abc/v1", "http://[bad/v1", "http:///v1"])
def test_what_is_no_address_is_one_clear_error(url):
    with pytest.raises(InputError, match="is no address"):
        Server(url)


def test_a_model_that_the_server_has_not_is_named(serve):
    with pytest.raises(InputError, match="has tiny, not phi"):
        Server(serve().url, "phi")


def test_other_questioners_do_not_exist():
    with pytest.raises(InputError, match="--questioner=phi is neither"):
        open_language_model("phi")


@pytest.mark.torch
def test_a_tiny_phi_3_replies_in_batches(tiny_phi3):
    fast, path = tiny_phi3

    async def run(*prompts):
        model = open_language_model(f"transformers:{path}")
        try:
            return await asyncio.gather(*map(model, prompts))
        finally:
            await model.close()

    together = asyncio.run(run("colour ?", "colour", "? ? ?"))
    alone = [asyncio.run(run(prompt))[0] for prompt in ("colour ?", "colour", "? ? ?")]
    assert [reply.prompt_tokens for reply in together] == [
        len(fast(f"<|user|> {p} ", add_special_tokens=False)["input_ids"])
        for p in ("colour ?", "colour", "? ? ?")
    ]
    # Left padding changes nothing.
    assert [reply.text for reply in together] == [reply.text for reply in alone]
    assert all(len(reply.text.split()) <= reply.completion_tokens <= 64 for reply in together)
    assert all(reply.text for reply in together)


def test_without_torch_the_way_out_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InputError, match="needs torch.*pip install torch"):
        open_language_model("transformers:anything")
