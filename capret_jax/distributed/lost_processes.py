"""Connections between process 0 and all others, which close as soon as a process dies.

JAX counts a process as dead after some heartbeats, and then aborts all others. The operating system
closes a dead process's connections at once, whatever ended it.
"""

import contextlib
import secrets
import selectors
import socket
import threading
from collections.abc import Callable
from typing import Any

import jax

# Key of the port that process 0 listens at, and of the password that its visitors have to know.
_PLACE = "capret_jax/lost_processes"
# Milliseconds to wait for it, seconds to wait for an answer.
_KEY_MILLISECONDS, _ANSWER_SECONDS = 60_000, 10
# Bytes of a greeting: password and index. A process that ends in order sends a farewell.
_PASSWORD, _INDEX, _FAREWELL = 16, 8, b"."
# A host that is gone closes nothing: its silence is noticed after 20 seconds. Firewalls forget
# connections that are silent for longer.
_KEEP_ALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}


class LostProcesses:
    """A thread that reports processes that end without a farewell.

    Process 0 watches all others, and each of them watches process 0. Where a network does not let
    them connect, nothing is reported.
    """

    def __init__(self, store: Any, address: str, report: Callable[[int], None]):
        """
        Args:
            store: client of the key-value store.
            address: host:port of process 0; the port is JAX's.
            report: is called in the thread with the index of a process that died.
        """
        self._store, self._host, self._report = store, address.rsplit(":", 1)[0].strip("[]"), report
        self._peers: list[socket.socket] = []
        self._leaving = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def say_farewell(self) -> None:
        """Tells the others that this process ends in order, and reports none of them any more."""
        self._leaving.set()
        for peer in list(self._peers):
            with contextlib.suppress(OSError):
                peer.sendall(_FAREWELL)

    def _watch(self) -> None:
        with contextlib.suppress(OSError, jax.errors.JaxRuntimeError):
            if jax.process_index():
                self._watch_process_0()
            else:
                self._watch_others()

    def _watch_process_0(self) -> None:
        port, password = self._store.blocking_key_value_get(_PLACE, _KEY_MILLISECONDS).split()
        peer = socket.create_connection((self._host, int(port)), _ANSWER_SECONDS)
        peer.sendall(f"{password}{jax.process_index():{_INDEX}}".encode())
        peer.settimeout(None)
        _keep_alive(peer)
        self._peers.append(peer)
        self._report_unless_in_order(peer, 0)

    def _watch_others(self) -> None:
        password = secrets.token_hex(_PASSWORD // 2)
        with _listener() as listener, selectors.DefaultSelector() as selector:
            self._store.key_value_set(_PLACE, f"{listener.getsockname()[1]} {password}")
            selector.register(listener, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fileobj is listener:
                        self._greet(listener, selector, password)
                        continue
                    peer = key.fileobj
                    assert isinstance(peer, socket.socket)
                    selector.unregister(peer)
                    self._peers.remove(peer)
                    self._report_unless_in_order(peer, key.data)

    def _report_unless_in_order(self, peer: socket.socket, index: int) -> None:
        """Waits until a process ends, and reports it if it says no farewell."""
        # One that left before it knew of this process said none to it, and waits for this one.
        with peer:
            in_order = _has_farewell(peer)
        if not in_order and not self._leaving.is_set():
            self._report(index)

    def _greet(
        self, listener: socket.socket, selector: selectors.BaseSelector, password: str
    ) -> None:
        """Accepts a connection if it comes from one of the processes."""
        with contextlib.suppress(OSError, ValueError):
            peer, _ = listener.accept()
            peer.settimeout(_ANSWER_SECONDS)
            greeting = peer.recv(_PASSWORD + _INDEX, socket.MSG_WAITALL).decode()
            if greeting[:_PASSWORD] == password:
                index = int(greeting[_PASSWORD:])
                _keep_alive(peer)
                self._peers.append(peer)
                selector.register(peer, selectors.EVENT_READ, index)
                if self._leaving.is_set():  # it came after the farewell
                    peer.sendall(_FAREWELL)


def _listener() -> socket.socket:
    """Listens at a free port of all addresses, as JAX's coordinator does."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))


def _keep_alive(peer: socket.socket) -> None:
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEP_ALIVE.items():
        if hasattr(socket, name):
            peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _has_farewell(peer: socket.socket) -> bool:
    """Waits until the other side ends; returns True if it ended in order."""
    try:
        return peer.recv(1) == _FAREWELL
    except OSError:
        return False
