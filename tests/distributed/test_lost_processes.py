"""Connections between the processes of a run, here between a thread and its test."""

import contextlib
import queue
import socket
import threading

import jax
import pytest

from capret_jax.distributed.lost_processes import LostProcesses

SECONDS = 5


class Store:
    """The key-value store of JAX's client, with one value."""

    def __init__(self):
        self._value, self._is_set = "", threading.Event()

    def key_value_set(self, key: str, value: str) -> None:
        self._value = value
        self._is_set.set()

    def blocking_key_value_get(self, key: str, milliseconds: int) -> str:
        assert self._is_set.wait(milliseconds / 1000)
        return self._value


@pytest.fixture
def reported() -> queue.Queue:
    """Indices of the processes that process 0 reports."""
    return queue.Queue()


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def zero(monkeypatch, store, reported) -> LostProcesses:
    monkeypatch.setattr(jax, "process_index", lambda: 0)
    return LostProcesses(store, "localhost:1", reported.put)


@pytest.fixture
def connect(zero, store):
    """Connects to process 0 as a process of some index does."""
    with contextlib.ExitStack() as stack:

        def connect(index: int) -> socket.socket:
            port, password = store.blocking_key_value_get("", 1000 * SECONDS).split()
            peer = socket.create_connection(("localhost", int(port)), SECONDS)
            stack.enter_context(peer)
            peer.sendall(f"{password}{index:8}".encode())
            return peer

        yield connect


def test_a_process_that_ends_without_a_farewell_is_reported(connect, reported):
    connect(3).close()
    assert reported.get(timeout=SECONDS) == 3


def test_a_process_that_says_farewell_is_not_reported(connect, reported):
    peer = connect(3)
    peer.sendall(b".")
    assert peer.recv(1) == b""  # process 0 has read it, and closed
    assert reported.empty()


def test_a_process_that_comes_after_the_farewell_hears_it(zero, store, connect):
    store.blocking_key_value_get("", 1000 * SECONDS)
    zero.say_farewell()
    assert connect(1).recv(1) == b"."


def test_a_process_that_ends_in_order_reports_none(zero, connect, reported):
    zero.say_farewell()
    peer = connect(1)
    assert peer.recv(1) == b"."
    peer.close()
    assert connect(2).recv(1) == b"."  # after the end of the first was noticed
    assert reported.empty()


def test_process_0_that_leaves_without_a_farewell_is_no_loss_to_one_that_leaves(
    monkeypatch, store, reported
):
    """It had not accepted the connection when it said farewell to all that it knew."""
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with socket.create_server(("localhost", 0)) as listener:
        store.key_value_set("", f"{listener.getsockname()[1]} {'x' * 16}")
        one = LostProcesses(store, "localhost:1", reported.put)
        accepted, _ = listener.accept()
        one.say_farewell()
        accepted.close()
    with pytest.raises(queue.Empty):
        reported.get(timeout=0.5)
