"""Pictures of an evaluation, read ahead of their use."""

from collections.abc import Iterator, Sequence

import grain
import jax
import numpy as np

from capret_jax.tasks.evaluators.inputs import EvaluationInputs
from capret_jax.tasks.evaluators.mesh_model import Batch, batch_rows
from capret_jax.tasks.pictures import PictureFolder

# Largest number of pictures that are read ahead.
_MAX_READY = 256


def read_picture(folder: PictureFolder, path: str, size: int) -> np.ndarray:
    """Reads a picture, squashed to S x S as in X2-VLM's evaluations.

    Args:
        folder: the folder of pictures.
        path: path of the picture below the folder.
        size: S, pixels.

    Returns:
        (S, S, 3) uint8 RGB.

    Raises:
        InputError: the file cannot be read, or is no picture.
    """
    photograph = folder.photograph(path)
    return photograph.crop(np.array([0, 0, photograph.width, photograph.height]), size)


def picture_batches(
    run: EvaluationInputs, paths: Sequence[str], arrays: Batch = ()
) -> Iterator[tuple[np.ndarray, Batch]]:
    """Yields this process's part of each batch of pictures, with their rows of other arrays.

    A batch has `evaluation.batch_size` rows, see `batch_rows`.

    Args:
        run: the folder of pictures, their size, and the process's share of a batch.
        paths: n paths below the folder.
        arrays: a tree of (n, ...) arrays.

    Yields:
        (b, S, S, 3) uint8 pictures and the (b, ...) rows.

    Raises:
        InputError: a picture cannot be read.
    """
    config = run.config
    read = config.data.read
    folder = PictureFolder(config.task.images, read.resize)
    size = config.model.image_size
    batches = batch_rows(run, len(paths), config.evaluation.batch_size)
    dataset = grain.MapDataset.source(batches.reshape(-1)).map(
        lambda row: read_picture(folder, paths[row], size)
    )
    ready = max(min(read.prefetch * batches.shape[1], _MAX_READY), 1)
    options = grain.ReadOptions(num_threads=read.threads, prefetch_buffer_size=ready)
    pictures = iter(dataset.to_iter_dataset(options))
    for rows in batches:
        yield (
            np.stack([next(pictures) for _ in rows]),
            jax.tree.map(lambda x, rows=rows: x[rows], arrays),
        )
