"""Opening of datasets by their config, with preparation at first use, and of tokenizers."""

import pathlib
from collections.abc import Iterable
from typing import NamedTuple

import tensorflow_datasets as tfds
from transformers import PreTrainedTokenizerBase

from capret_jax.config import DataConfig
from capret_jax.data.items import load_items
from capret_jax.data.pipeline import Split
from capret_jax.data.preparation import prepare_deepfashion2
from capret_jax.data.records import Records
from capret_jax.data.tokenizer import build_vocabulary, load_tokenizer
from capret_jax.errors import InputError
from capret_jax.synthetic import builder as synthetic


class Dataset(NamedTuple):
    """A dataset that is open for reading.

    Attributes:
        train: the training split.
        validation: the validation split.
        folder: folder of the prepared dataset.
    """

    train: Split
    validation: Split
    folder: pathlib.Path


def open_dataset(config: DataConfig) -> Dataset:
    """Opens a dataset; prepares it at first use.

    Raises:
        InputError: the folder cannot be written, a split is empty, or there is nothing to prepare.
    """
    builder = _open(config)
    train, validation = (Records(builder, split) for split in ("train", "validation"))
    return Dataset(
        Split(train, load_items(train), config.read.cached_images),
        Split(validation, load_items(validation)),
        pathlib.Path(builder.data_path),
    )


def _open(config: DataConfig) -> tfds.core.DatasetBuilder:
    if config.name == "deepfashion2":
        return prepare_deepfashion2(config.source_dir, config.prepared_dir, config.prepare)
    try:
        return synthetic.prepare(config.prepared_dir, config.variant)
    except OSError as error:
        raise InputError(
            f"data.prepared_dir={config.prepared_dir!r} cannot hold the dataset "
            f"({error.strerror}): set --config.data.prepared_dir to a folder with room."
        ) from error


def open_tokenizer(
    config: DataConfig, captions: Iterable[str], workdir: pathlib.Path, vocab_size: int
) -> PreTrainedTokenizerBase:
    """Opens the configured tokenizer, or one built from the training captions at first use.

    Args:
        config: `tokenizer` is read.
        captions: texts to build a vocabulary from; read only when there is none yet.
        workdir: folder of a built vocabulary, `vocab.txt`.
        vocab_size: number of tokens of the model.

    Raises:
        InputError: the tokenizer does not exist, or it has more tokens than the model.
    """
    path = config.tokenizer
    if not path:
        path = str(workdir / "vocab.txt")
        if not pathlib.Path(path).exists():
            build_vocabulary(captions, path, vocab_size)
    tokenizer = load_tokenizer(path)
    if len(tokenizer) > vocab_size:
        raise InputError(
            f"{path} has {len(tokenizer)} tokens and the model {vocab_size}: set "
            f"--config.model.vocab_size={len(tokenizer)}."
        )
    return tokenizer
