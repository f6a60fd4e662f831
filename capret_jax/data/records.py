"""Random access to the prepared photographs of a split, pixels and annotations apart."""

import tensorflow_datasets as tfds

from capret_jax.errors import InputError

_SKIP = {"image": tfds.decode.SkipDecoding()}


class Records:
    """The ArrayRecord files of one split.

    A training step wants a photograph's bytes alone and the item table wants all but them; parsing
    the whole record for either took three times as long.
    """

    def __init__(self, builder: tfds.core.DatasetBuilder, split: str):
        """
        Args:
            builder: prepared, with the features of `schema.features`.
            split: "train" or "validation".

        Raises:
            InputError: the split is missing or empty.
        """
        if split not in builder.info.splits or not builder.info.splits[split].num_examples:
            raise InputError(
                f"the dataset in {builder.data_path} has no {split} images: delete that folder "
                "to prepare it again, or point config.data at another dataset."
            )
        self._raw = builder.as_data_source(
            split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
        )
        features = dict(builder.info.features.items())
        self._image = tfds.features.FeaturesDict({"image": features.pop("image")})
        self._annotation = tfds.features.FeaturesDict(features)

    def __len__(self) -> int:
        return len(self._raw)

    def image(self, index: int) -> bytes:
        """The JPEG file of a photograph."""
        return self._image.deserialize_example_np(self._raw[index], decoders=_SKIP)["image"]

    def annotation(self, index: int) -> dict:
        """Everything else, as `schema.features` names it."""
        return self._annotation.deserialize_example_np(self._raw[index])
