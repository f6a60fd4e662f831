"""Interpolates relative position tables to another image size, as BEiT and X2-VLM do."""

import dataclasses

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from scipy.interpolate import RectBivariateSpline

from capret_jax.config import ModelConfig
from capret_jax.errors import InputError

_CLS_ROWS = 3


def with_image_size(params: dict, config: ModelConfig, image_size: int) -> tuple[dict, ModelConfig]:
    """Returns params and config for square images of another size; only the tables are new.

    Raises:
        InputError: `image_size` is not a positive multiple of 16.
    """
    target = dataclasses.replace(config, image_size=image_size)
    if target == config:
        return params, config
    flat = flatten_dict(params, sep="/")
    tables = {
        path: interpolate_bias_table(np.asarray(table), target.grid)
        for path, table in flat.items()
        if path.endswith("relative_position_bias")
    }
    return unflatten_dict(flat | tables, sep="/"), target


def interpolate_bias_table(table: np.ndarray, grid: int) -> np.ndarray:
    """Interpolates the patch offsets with cubic splines, and keeps the three CLS rows.

    The offsets of the trained table are placed on a geometric progression, dense near zero, whose
    largest value is the largest offset of the new grid.

    Args:
        table: ((2g-1)^2 + 3, H), for a g x g grid of patches.
        grid: new number of patches along one side.

    Returns:
        ((2*grid-1)^2 + 3, H) float32.

    Raises:
        InputError: the number of rows is not that of a square grid.
    """
    rows, heads = table.shape
    source = round((rows - _CLS_ROWS) ** 0.5)
    if source**2 != rows - _CLS_ROWS or source % 2 == 0:
        raise InputError(f"a table of {rows} rows is not of a square grid of patches.")
    target = 2 * grid - 1
    if source == target:
        return table
    offsets = _geometric_offsets(source, target)
    new_offsets = np.arange(target) - (target - 1) / 2
    patches = table[:-_CLS_ROWS].reshape(source, source, heads).astype(np.float64)
    # Tables of 1 or 3 offsets per side are too small for cubic splines.
    degree = min(3, source - 1)
    if degree == 0:
        planes = [np.full((target, target), patches[0, 0, head]) for head in range(heads)]
    else:
        planes = [
            RectBivariateSpline(offsets, offsets, patches[:, :, head], kx=degree, ky=degree)(
                new_offsets, new_offsets
            )
            for head in range(heads)
        ]
    interpolated = np.stack(planes, axis=-1).reshape(-1, heads).astype(np.float32)
    return np.concatenate([interpolated, table[-_CLS_ROWS:]])


def _geometric_offsets(source: int, target: int) -> np.ndarray:
    """Returns `source` symmetric offsets with steps q^0, q^1, ..., up to `target // 2`."""
    steps = source // 2
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        ratio = (low + high) / 2
        if np.sum(ratio ** np.arange(steps)) > target // 2:
            high = ratio
        else:
            low = ratio
    positive = np.cumsum(ratio ** np.arange(steps))
    return np.concatenate([-positive[::-1], [0.0], positive])
