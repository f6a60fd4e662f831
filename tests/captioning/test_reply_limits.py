"""Limits of chat servers: each server here breaks one of them."""

import asyncio
import contextlib
import gzip
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from capret_jax.captioning import chat_connection
from capret_jax.captioning.chat_client import ChatClient, ServerConfig
from capret_jax.captioning.language_model import MAX_COMPLETION_TOKENS, Completion, NoReply
from capret_jax.captioning.reply_text import MAX_REPLY_CHARS
from capret_jax.errors import InputError

CONFIG = ServerConfig(workers=2, timeout=0.4, retries=1)
MODELS = json.dumps({"object": "list", "data": [{"id": "tiny", "object": "model"}]}).encode()
CHUNK = b" " * 65536
# What fits into the buffers between a server and a client, with the limit.
MAX_SENT = 16_000_000


class RawServer:
    """A server that sends bytes as they are.

    Attributes:
        sent: bytes of all bodies.
        requests: headers and bodies of the requests for a completion.
    """

    def __init__(self, body, *, models=lambda: [MODELS], status=200, headers=()):
        """
        Args:
            body: returns the pieces of a completion's body: bytes, and floats, seconds to wait.
            models: returns the pieces of the list of models.
            status: HTTP status of completions.
            headers: pairs of additional headers of completions.
        """
        self.sent, self.requests = 0, []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self._send(models())

            def do_POST(self):
                content = self.rfile.read(int(self.headers["Content-Length"]))
                outer.requests.append((self.headers, json.loads(content)))
                self._send(body(), status, headers)

            def _send(self, pieces, status=200, headers=()):
                with contextlib.suppress(OSError):  # the client has gone
                    self.send_response(status)
                    for header in (("Content-Type", "application/json"), *headers):
                        self.send_header(*header)
                    self.end_headers()
                    for piece in pieces:
                        if isinstance(piece, float):
                            time.sleep(piece)
                            continue
                        self.wfile.write(piece)
                        outer.sent += len(piece)

            def log_message(self, *args):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self):
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def serve():
    with contextlib.ExitStack() as servers:

        def start(body=lambda: [completion("yes")], **options) -> RawServer:
            server = RawServer(body, **options)
            servers.callback(server.stop)
            return server

        yield start


def completion(content, **usage) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": content}}
    return json.dumps({"id": "x", "choices": [choice], "usage": usage, "model": "tiny"}).encode()


def endless(piece=CHUNK, first=b'{"choices": ['):
    """Sends more than any buffer holds: a reader without a limit takes a gigabyte."""
    yield first
    for _ in range(16_000):
        yield piece


def drip():
    for _ in range(100):
        yield b" "
        yield 0.05


def complete(server: RawServer) -> Completion | NoReply:
    async def run():
        model = ChatClient(server.url, config=CONFIG)
        try:
            return await model("a prompt")
        except NoReply as error:
            return error
        finally:
            await model.close()

    return asyncio.run(run())


@pytest.mark.parametrize("status", [200, 500])
def test_endless_reply_is_stopped_and_not_asked_for_again(serve, status):
    server = serve(endless, status=status)
    reply = complete(server)
    assert isinstance(reply, NoReply) and len(server.requests) == 1
    assert "a reply is longer than 1,000,000 bytes: set --questioner" in str(reply)
    assert server.sent < MAX_SENT


def test_reply_of_ten_megabytes_is_stopped(serve):
    reply = complete(serve(lambda: [completion("x" * 10_000_000)]))
    assert isinstance(reply, NoReply) and "1,000,000 bytes" in str(reply)


def test_reply_just_below_the_limit_is_read(serve):
    reply = complete(serve(lambda: [completion("x" * 990_000)]))
    assert reply.text == "x" * MAX_REPLY_CHARS


def test_endless_list_of_models_is_stopped(serve):
    server = serve(models=endless)
    with pytest.raises(InputError, match=f"--questioner={server.url}: a reply is longer than"):
        ChatClient(server.url)
    assert server.sent < MAX_SENT


def test_reply_that_drips_ends(serve):
    start = time.perf_counter()
    server = serve(drip)
    reply = complete(server)
    assert isinstance(reply, NoReply) and "TimeoutError" in str(reply)
    assert len(server.requests) == 2 and time.perf_counter() - start < 4


def test_list_of_models_that_drips_ends(serve, monkeypatch):
    monkeypatch.setattr(chat_connection, "_LIST_TIMEOUT", 0.3)
    start = time.perf_counter()
    with pytest.raises(InputError, match="cannot be reached.*start the server, or correct"):
        ChatClient(serve(models=drip).url)
    assert time.perf_counter() - start < 2


def test_redirects_are_not_followed(serve):
    target = serve()
    headers = [("Location", f"{target.url}/chat/completions")]
    reply = complete(serve(status=307, headers=headers))
    assert isinstance(reply, NoReply) and not target.requests
    assert f"it redirects to {target.url}" in str(reply)


def test_compressed_reply_is_refused_before_it_is_unpacked(serve):
    packed = gzip.compress(b" " * 100_000_000, compresslevel=1)
    assert len(packed) < 1_000_000
    reply = complete(serve(lambda: [packed], headers=[("Content-Encoding", "gzip")]))
    assert isinstance(reply, NoReply) and "turn off the server's compression" in str(reply)


@pytest.mark.parametrize("depth", [300, 900, 100_000])
@pytest.mark.parametrize("place", [b"%s", b'{"choices": [{"message": {"content": %s}}]}'])
def test_nested_json_is_no_reply(serve, depth, place):
    reply = complete(serve(lambda: [place % (b"[" * depth + b"]" * depth)]))
    assert isinstance(reply, NoReply) and len(str(reply)) <= 200


def test_characters_that_cannot_be_stored_or_printed_are_dropped(serve):
    reply = complete(
        serve(lambda: [completion("What\ud800 colour\x1b[31m\u202e?\r\n\x00Red\u200b.")])
    )
    assert reply.text == "What colour [31m ?\nRed ."


@pytest.mark.parametrize("count", [-1, True, 10**20, 1.5, "7"])
def test_impossible_token_counts_are_not_counted(serve, count):
    reply = complete(serve(lambda: [completion("yes", prompt_tokens=count, completion_tokens=3)]))
    assert reply == ("yes", 0, 3)


def test_names_of_models_are_checked_and_few_are_listed(serve):
    names = [f"model{i}" for i in range(5000)]
    data = [{"id": name} for name in (7, None, "x" * 10_000, "a\x1b[2J", "\ud800", "", *names)]
    server = serve(models=lambda: [json.dumps({"object": "list", "data": data}).encode()])
    model = ChatClient(server.url)
    assert model.name == "model0"
    asyncio.run(model.close())
    with pytest.raises(InputError, match="has model0, .*, model9 and 4990 more, not phi") as raised:
        ChatClient(server.url, "phi")
    assert len(str(raised.value)) < 300


def test_key_is_sent_without_white_space_and_the_length_is_limited(serve, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", " sk-1\r\n")
    server = serve()
    assert complete(server).text == "yes"
    ((headers, body),) = server.requests
    assert headers["Authorization"] == "Bearer sk-1"
    assert headers["Accept-Encoding"] == "identity"
    assert body["max_tokens"] == MAX_COMPLETION_TOKENS


@pytest.mark.parametrize("key", ["sk-1\nsk-2", "sk 1", "sk-\u2013", "sk-\x7f"])
def test_key_that_no_header_may_have_is_an_input_error(serve, monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(InputError, match="OPENAI_API_KEY has .*: copy it again") as raised:
        ChatClient(serve().url)
    assert "sk" not in str(raised.value)


@pytest.mark.parametrize("demanded", ["nan", "inf", "-1", "1e400"])
def test_impossible_pauses_are_bounded(serve, monkeypatch, demanded):
    slept = []

    async def sleep(seconds):
        slept.append(seconds)

    monkeypatch.setattr("capret_jax.captioning.chat_client.asyncio.sleep", sleep)
    reply = complete(serve(status=503, headers=[("Retry-After", demanded)]))
    assert isinstance(reply, NoReply)
    assert all(0 <= seconds <= 60 for seconds in slept) and slept
