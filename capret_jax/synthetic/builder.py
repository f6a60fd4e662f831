"""SyntheticFashion: a small drawn dataset in the style of DeepFashion2, made at first use."""

import contextlib
import io
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import tensorflow_datasets as tfds
from etils import epath
from tqdm import tqdm

from capret_jax.data import schema
from capret_jax.data.records import damaged_metadata
from capret_jax.synthetic import identities, pool

# Far from the families' pair_ids.
_FIRST_SINGLE = 1_000_001


@dataclass(eq=False)
class SyntheticFashionConfig(tfds.core.BuilderConfig):
    """Sizes of one variant of the dataset; views are photographs of one identity."""

    train_identities: int = 320
    validation_identities: int = 80
    train_views: int = 4  # of each source
    validation_views: int = 3
    distractors: int = 60  # shop photographs without identity, in validation
    train_singles: int = 6000  # garments without identity, each in one photograph
    seed: int = 2019

    def entries(self, split: str) -> list[identities.GarmentEntry]:
        """Lists the garments of "train" or "validation"."""
        families = -(-self.train_identities // identities.FAMILY_SIZE)
        if split == "train":
            named = identities.list_families(
                identities=self.train_identities,
                shop_views=self.train_views,
                user_views=self.train_views,
                seed=self.seed,
            )
            return named + identities.list_singles(self.train_singles, _FIRST_SINGLE, self.seed)
        return identities.list_families(
            identities=self.validation_identities,
            shop_views=self.validation_views,
            user_views=self.validation_views,
            distractors=self.distractors,
            first_pair_id=1 + families,
            seed=self.seed,
        )


class SyntheticFashion(tfds.core.GeneratorBasedBuilder):
    """Drawn photographs of drawn garments; splits "train" and "validation".

    The records, `schema.features`, are the same bytes on every machine.
    """

    VERSION = tfds.core.Version("1.3.0")
    BUILDER_CONFIGS = [
        SyntheticFashionConfig(name="demo", description="Enough to learn from in minutes."),
        SyntheticFashionConfig(
            name="large",
            description="The demo with more garments, for learning the categories.",
            train_singles=20_000,
        ),
        # The seed differs from the demo's, so no garment is in both.
        SyntheticFashionConfig(
            name="pretrain",
            description="Other garments than the demo's, to learn language and objects from.",
            train_identities=6000,
            validation_identities=39,
            train_views=1,
            validation_views=2,
            distractors=0,
            train_singles=0,
            seed=1906,
        ),
        SyntheticFashionConfig(
            name="mini",
            description="For tests.",
            train_identities=12,
            validation_identities=6,
            train_views=3,
            validation_views=2,
            distractors=4,
            train_singles=13,
        ),
    ]
    DEFAULT_CONFIG_NAME = "demo"
    # Without this, TFDS uses importlib_resources, which it does not list as a requirement.
    code_path = epath.Path(__file__)

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description=__doc__, features=schema.features(details=True), homepage="", citation=None
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager  # nothing to download
        train = self.builder_config.entries("train")
        validation = self.builder_config.entries("validation")
        pictures = sum(entry.shop_views + entry.user_views for entry in train)
        return {
            "train": self._generate_examples(train, first_image_id=1),
            "validation": self._generate_examples(validation, first_image_id=1 + pictures),
        }

    def _generate_examples(
        self, entries: list[identities.GarmentEntry], first_image_id: int
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        drawn = pool.draw_all(entries)
        progress = tqdm(drawn, "drawing garments", len(entries), unit="garment", leave=False)
        records = itertools.chain.from_iterable(progress)
        for image_id, record in enumerate(records, first_image_id):
            yield image_id, {"image_id": image_id, **record}


def prepare(prepared_dir: str | os.PathLike, config_name: str = "demo") -> SyntheticFashion:
    """Opens the dataset under `prepared_dir`; draws it first if it is not there.

    TFDS writes into a temporary directory and renames it when complete. So the remains of an
    interrupted run are neither read as the dataset nor in the way of the next run.

    Args:
        prepared_dir: folder of prepared datasets.
        config_name: name of one of the `BUILDER_CONFIGS`.

    Raises:
        InputError: the metadata of the dataset is damaged.
    """
    with damaged_metadata(prepared_dir):
        builder = SyntheticFashion(
            data_dir=prepared_dir, config=config_name, file_format="array_record"
        )
    # TFDS reports downloads and shuffling, which do not happen here, in bars without a total.
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare()
    return builder
