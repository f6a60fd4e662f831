"""From a config to the two splits of a dataset, prepared at first use, and their tokenizer."""

import dataclasses
import pathlib
from collections.abc import Iterable
from typing import NamedTuple

import tensorflow_datasets as tfds
from transformers import PreTrainedTokenizerBase

from capret_jax.data import synthetic
from capret_jax.data.captions import CaptionConfig, check_fields
from capret_jax.data.items import read_items
from capret_jax.data.pipeline import ReadConfig, Split, ViewConfig
from capret_jax.data.preparation import PrepareConfig, prepare_deepfashion2
from capret_jax.data.records import Records
from capret_jax.data.tokenizer import build_vocabulary, load_tokenizer
from capret_jax.data.transforms import AugmentConfig
from capret_jax.errors import InputError

NAMES = ("synthetic", "deepfashion2")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which photographs, and how they become batches.

    Attributes:
        name: "synthetic", the embedded dataset, or "deepfashion2".
        variant: of the synthetic dataset: "demo", "large" (more of it), "pretrain" (other
            garments) or "mini".
        source_dir: a raw DeepFashion2 folder, prepared at first use; not needed afterwards.
        prepare: how raw data is prepared.
        prepared_dir: where prepared datasets are kept.
        tokenizer: a vocab.txt, a folder, or a hub name such as "bert-base-uncased"; empty builds a
            vocabulary from the training captions, kept in the workdir.
        max_tokens: T, tokens of a caption with [CLS] and [SEP].
        views_per_identity: K, views of each identity in a batch; 0 draws the same items one by one
            and tells no loss which are of one garment.
        vocabulary: fields of captions whose words a vocabulary that is built has, too: a model that
            others start from knows them, whatever its own captions say.
        view: what the model sees of an item.
        captions: what they say.
        augment: random changes of training views.
        read: threads and batches to keep ready.
    """

    name: str = "synthetic"
    variant: str = "demo"
    source_dir: str = ""
    prepare: PrepareConfig = PrepareConfig()
    prepared_dir: str = "runs/data"
    tokenizer: str = ""
    max_tokens: int = 40
    views_per_identity: int = 4
    vocabulary: tuple[str, ...] = ()
    view: ViewConfig = ViewConfig()
    captions: CaptionConfig = CaptionConfig()
    augment: AugmentConfig = AugmentConfig()
    read: ReadConfig = ReadConfig()

    def __post_init__(self):
        if self.name not in NAMES:
            raise InputError(f"data.name={self.name!r} is none of {', '.join(NAMES)}.")
        variants = [config.name for config in synthetic.SyntheticFashion.BUILDER_CONFIGS]
        if self.variant not in variants:
            raise InputError(f"data.variant={self.variant!r} is none of {', '.join(variants)}.")
        check_fields("data.vocabulary", self.vocabulary)
        if self.augment.wide and self.view.kind != "crop":
            raise InputError(
                f"data.augment.wide={self.augment.wide} widens crops, and "
                f"data.view.kind={self.view.kind!r} shows whole photographs as it is."
            )
        if self.max_tokens < 3:
            raise InputError(f"data.max_tokens={self.max_tokens} leaves no room for a caption.")


class Dataset(NamedTuple):
    """The two splits, and the folder of the prepared dataset."""

    train: Split
    validation: Split
    folder: pathlib.Path


def open_dataset(config: DataConfig) -> Dataset:
    """Opens a dataset; prepares it if it is not there.

    Raises:
        InputError: the folder cannot be written, a split is empty, or there is nothing to prepare.
    """
    builder = _open(config)
    train, validation = (Records(builder, split) for split in ("train", "validation"))
    return Dataset(
        Split(train, read_items(train), config.read.cached_images),
        Split(validation, read_items(validation)),
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
    """The configured tokenizer, or one built from the training captions at first use.

    Raises:
        InputError: there is no such tokenizer, or it has more tokens than the model.
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
