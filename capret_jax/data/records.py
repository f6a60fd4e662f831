"""Random access to the prepared photographs of a split; pixels and annotations are parsed apart."""

import pathlib

import tensorflow_datasets as tfds

from capret_jax.errors import InputError

_SKIP = {"image": tfds.decode.SkipDecoding()}


class Records:
    """The ArrayRecord files of one split.

    A training step needs only a photograph's bytes, and the item table needs everything but them;
    parsing the whole record for either takes three times as long.

    Attributes:
        split: "train" or "validation".
        folder: folder of the prepared dataset.
        files: the ArrayRecord files of the split, in order.
    """

    def __init__(self, builder: tfds.core.DatasetBuilder, split: str):
        """
        Args:
            builder: a prepared dataset with the features of `schema.features`.
            split: "train" or "validation".

        Raises:
            InputError: the split is missing or empty.
        """
        if split not in builder.info.splits or not builder.info.splits[split].num_examples:
            raise InputError(
                f"the dataset in {builder.data_path} has no {split} images: delete that folder "
                "to prepare it again, or point config.data at another dataset."
            )
        self.split = split
        self.folder = pathlib.Path(builder.data_path)
        self.files = [pathlib.Path(file) for file in builder.info.splits[split].filepaths]
        self._raw = builder.as_data_source(
            split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
        )
        features = dict(builder.info.features.items())
        self._image = tfds.features.FeaturesDict({"image": features.pop("image")})
        self._annotation = tfds.features.FeaturesDict(features)

    def __len__(self) -> int:
        return len(self._raw)

    def image(self, index: int) -> bytes:
        """Returns the JPEG file of a photograph."""
        return self._image.deserialize_example_np(self._raw[index], decoders=_SKIP)["image"]

    def annotation(self, index: int) -> dict:
        """Returns all features of a photograph but its image, named as in `schema.features`."""
        return self._annotation.deserialize_example_np(self._raw[index])
