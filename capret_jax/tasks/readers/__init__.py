"""Readers of the standard annotation files of X2-VLM's tasks; each module describes its format."""

from collections.abc import Callable
from typing import NamedTuple

from capret_jax.config.task import TaskConfig
from capret_jax.tasks.readers.annotations import Examples
from capret_jax.tasks.readers.captions import read_test_captions, read_training_captions
from capret_jax.tasks.readers.grounding import read_test_phrases, read_training_phrases
from capret_jax.tasks.readers.instances import read_test_instances, read_training_instances
from capret_jax.tasks.readers.nlvr2 import read_test_sentences, read_training_sentences
from capret_jax.tasks.readers.vqa import read_test_questions, read_training_questions

__all__ = ["Examples", "read_test", "read_training"]


class _Readers(NamedTuple):
    """Functions that read the two splits of a task."""

    training: Callable[[TaskConfig], Examples]
    test: Callable[[TaskConfig], Examples]


_READERS = {
    "retrieval": _Readers(read_training_captions, read_test_captions),
    "vqa": _Readers(read_training_questions, read_test_questions),
    "grounding": _Readers(read_training_phrases, read_test_phrases),
    "captioning": _Readers(read_training_captions, read_test_captions),
    "detection": _Readers(read_training_instances, read_test_instances),
    "nlvr2": _Readers(read_training_sentences, read_test_sentences),
}


def read_training(config: TaskConfig) -> Examples:
    """Reads the training split of a task: examples of its class in `tasks.examples`.

    Raises:
        InputError: a file cannot be read, has another format or split, or lacks pictures.
    """
    return _READERS[config.name].training(config)


def read_test(config: TaskConfig) -> Examples:
    """Reads the split of a task to evaluate on, like `read_training`."""
    return _READERS[config.name].test(config)
