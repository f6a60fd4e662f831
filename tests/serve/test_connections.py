"""Connections on which requests arrive slowly or not at all, to a real server."""

import http.client
import socket
import threading
import time

import pytest
import uvicorn

from capret_jax.serve.connections import LimitedConnection


class Impatient(LimitedConnection):
    first_byte_seconds, header_seconds = 0.6, 0.3


async def answer(scope, receive, send):
    assert scope["type"] == "http"
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]}
    )
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture(scope="module")
def port():
    """The port of a server with short limits."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(answer, http=Impatient, lifespan="off", log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield listener.getsockname()[1]
    server.should_exit = True
    thread.join(10)
    listener.close()


@pytest.fixture
def client(port):
    """A connection; reading blocks for at most 5 seconds."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        yield connection


def test_a_connection_without_a_byte_is_closed(client):
    assert client.recv(1) == b""


def test_half_a_header_is_closed(client):
    client.sendall(b"GET / HTTP/1.1\r\nHost: x")
    assert client.recv(1) == b""


def test_a_header_that_drips_is_closed(client):
    start = time.monotonic()
    with pytest.raises(OSError):
        while time.monotonic() - start < 5:
            client.sendall(b"G")
            time.sleep(0.05)


def test_half_a_header_after_a_first_request_is_closed(client):
    client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b"200 OK" in client.recv(1 << 16)
    client.sendall(b"GET / HT")
    assert client.recv(1 << 16).replace(b"ok", b"") == b""


def test_a_connection_in_use_stays_open(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    for pause in (0.0, 0.4, 0.4):  # longer than a header may take
        time.sleep(pause)
        connection.request("GET", "/")
        assert connection.getresponse().read() == b"ok"
        first = connection.sock
    assert connection.sock is first
    connection.close()
