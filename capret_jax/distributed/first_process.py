"""Work that process 0 does for all processes, however long it takes."""

import itertools
import json
from collections.abc import Callable
from typing import Any

import jax

from capret_jax.distributed.process_group import key_value_store

# Milliseconds of one request to the key-value store; another one follows.
_REQUEST = 10_000
_numbers = itertools.count()


def first_process_only(function: Callable[[], Any]) -> Any:
    """Calls a function on process 0 alone, while the others wait for its result.

    Every process has to call it, in the same order as other calls. They wait without a limit as
    long as process 0 lives: some collectives, and JAX's barriers, give up after minutes.

    Args:
        function: a function that returns values of JSON: small ones, such as metrics.

    Returns:
        Its result, on every process.

    Raises:
        RuntimeError: process 0 ended.
    """
    if jax.process_count() == 1:
        return function()
    store, key = key_value_store(), f"capret_jax/first_process/{next(_numbers)}"
    if jax.process_index() == 0:
        result = function()
        store.key_value_set(key, json.dumps(result))
        return result
    while True:
        try:
            return json.loads(store.blocking_key_value_get(key, _REQUEST))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
