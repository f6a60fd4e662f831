"""Random access to the prepared photographs of a split; pixels and annotations are parsed apart."""

import contextlib
import errno
import os
import pathlib
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader

from capret_jax.errors import InputError

_SKIP = {"image": tfds.decode.SkipDecoding()}
_REMEDY = "restore it from a copy, or delete the prepared dataset's folder to prepare it again"


@contextlib.contextmanager
def damaged_metadata(folder: str | os.PathLike) -> Iterator[None]:
    """Turns the many errors of damaged metadata into one.

    Raises:
        InputError: a file is missing, or its content caused an error of any type.
        OSError: the file cannot be read, for a reason that is not in it.
    """
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.ENOENT):
            raise
        reason = f"{type(error).__name__}: {error}"[:200]
        raise InputError(f"{folder} has damaged metadata ({reason}): {_REMEDY}.") from error


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
            InputError: the split is missing or empty, or its metadata is damaged.
        """
        if split not in builder.info.splits or not builder.info.splits[split].num_examples:
            raise InputError(
                f"the dataset in {builder.data_path} has no {split} images: delete that folder "
                "to prepare it again, or point config.data at another dataset."
            )
        self.split = split
        self.folder = pathlib.Path(builder.data_path)
        self.files = [pathlib.Path(file) for file in builder.info.splits[split].filepaths]
        with damaged_metadata(self.folder):
            self._raw = builder.as_data_source(
                split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
            )
        features = dict(builder.info.features.items())
        self._lengths = np.array(builder.info.splits[split].shard_lengths)
        self._image = tfds.features.FeaturesDict({"image": features.pop("image")})
        self._annotation = tfds.features.FeaturesDict(features)

    def __reduce__(self) -> tuple:
        return _open_records, (str(self.folder), self.split)

    def __len__(self) -> int:
        return len(self._raw)

    def image(self, index: int) -> bytes:
        """Returns the JPEG file of a photograph.

        Raises:
            InputError: the file that holds it is damaged or was removed.
        """
        return self._image.deserialize_example_np(self._read(index), decoders=_SKIP)["image"]

    def annotation(self, index: int) -> dict:
        """Returns all features of a photograph but its image, named as in `schema.features`.

        Raises:
            InputError: the file that holds it is damaged or was removed.
        """
        return self._annotation.deserialize_example_np(self._read(index))

    def check_lengths(self) -> None:
        """Checks that the files hold as many records as the metadata says.

        Raises:
            InputError: a file holds another number, is damaged or was removed.
        """
        for file, expected in zip(self.files, self._lengths, strict=True):
            try:
                reader = ArrayRecordReader(str(file))
                found = reader.num_records()
                reader.close()
            except RuntimeError as error:
                raise InputError(f"{file} cannot be read: {_REMEDY} ({error}).") from error
            if found != expected:
                raise InputError(
                    f"{file} holds {found} records, and dataset_info.json says {expected}: "
                    f"{_REMEDY}."
                )

    def _read(self, index: int) -> bytes:
        """Returns a record, whose checksum the library verifies."""
        try:
            return self._raw[index]
        except RuntimeError as error:
            file = self.files[np.searchsorted(np.cumsum(self._lengths), index, side="right")]
            raise InputError(
                f"{file} cannot be read, and has photograph {index} of {self.split}: {_REMEDY} "
                f"({error})."
            ) from error


def _open_records(folder: str, split: str) -> Records:
    return Records(tfds.builder_from_directory(folder), split)
