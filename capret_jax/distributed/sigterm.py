"""SIGTERM, which both Python's handlers and JAX's preemption service act on."""

import ctypes
import signal
from collections.abc import Callable

# A thin wrapper of sigaction: the address of the handler that the operating system calls.
_handler_address = ctypes.pythonapi.PyOS_getsig
_handler_address.argtypes, _handler_address.restype = [ctypes.c_int], ctypes.c_void_p
# The handler of JAX's preemption service; it only sets a flag, which a thread looks at.
_of_jax: Callable[[int], None] | None = None


def share_with_jax() -> None:
    """Puts Python's handler of SIGTERM back in the place of the one that JAX has installed.

    Raises:
        RuntimeError: JAX has installed none.
    """
    global _of_jax
    address = _handler_address(signal.SIGTERM)
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
    if address in (None, _handler_address(signal.SIGTERM)):
        raise RuntimeError(
            "JAX's preemption service has no handler of SIGTERM: this version of JAX does not fit"
        )
    _of_jax = ctypes.CFUNCTYPE(None, ctypes.c_int)(address)


def notify_preemption() -> None:
    """Tells JAX's preemption service that this process received SIGTERM, if there is a group."""
    if _of_jax is not None:
        _of_jax(signal.SIGTERM)
