"""Opening of datasets by their config, with preparation at first use, and of tokenizers."""

import pathlib
import tempfile
from collections.abc import Iterable
from typing import NamedTuple

import tensorflow_datasets as tfds

from capret_jax.buckets.access import staged
from capret_jax.config import Cleaning, DataConfig
from capret_jax.data.items import load_items
from capret_jax.data.preparation import VERSION, prepare_deepfashion2
from capret_jax.data.record_shards import NAME
from capret_jax.data.records import Records
from capret_jax.data.split import Split
from capret_jax.data.tokenizer import build_vocabulary
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
        Split(train, load_items(train), config.read.cached_images, config.read.resize),
        Split(validation, load_items(validation), resize=config.read.resize),
        pathlib.Path(builder.data_path),
    )


def _open(config: DataConfig) -> tfds.core.DatasetBuilder:
    # ArrayRecord and TFDS read files on a disk alone.
    if config.name == "deepfashion2":
        folder = staged(config.prepared_dir, f"{NAME}/{VERSION}")
        return prepare_deepfashion2(config.source_dir, folder, config.prepare)
    try:
        folder = staged(config.prepared_dir, f"{synthetic.SyntheticFashion.name}/{config.variant}")
        return synthetic.prepare(folder, config.variant)
    except OSError as error:
        raise InputError(
            f"data.prepared_dir={config.prepared_dir!r} cannot hold the dataset "
            f"({error.strerror}): set --config.data.prepared_dir to a folder with room."
        ) from error


def provide_vocabulary(
    path: pathlib.Path,
    captions: Iterable[str],
    size: int,
    cleaning: Cleaning = Cleaning(),
    raw: Iterable[str] = (),
) -> None:
    """Builds the vocabulary of captions before a run begins, at its first start.

    Args:
        path: file of the vocabulary, in the workdir.
        captions: texts to build it from.
        size: maximal number of tokens.
        cleaning: preparation of the captions.
        raw: further texts, which are tokenised without preparation.

    Raises:
        InputError: there is such a file already, with other tokens.
    """
    if not path.exists():
        build_vocabulary(captions, path, size, cleaning, raw)
        return
    with tempfile.TemporaryDirectory() as folder:
        built = pathlib.Path(folder) / path.name
        build_vocabulary(captions, built, size, cleaning, raw)
        if built.read_bytes() != path.read_bytes():
            raise InputError(
                f"{path} is not the vocabulary of this run's captions, and no checkpoint was "
                "trained with it: remove it, or name it in --config.data.tokenizer."
            )
