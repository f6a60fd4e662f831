"""Forest plot of the primary contrasts: positions of intervals, for the report template."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from capret_jax.ablation.contrasts import Contrast

_LEFT, _RIGHT, _ROW_HEIGHT = 430, 960, 22
# Distances between ticks, in mAP.
_STEPS, _MAX_TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5), 10


class PlotRow(NamedTuple):
    """A contrast in the plot; y, low, mean and high are in pixels."""

    label: str
    verdict: str
    y: int
    low: float
    mean: float
    high: float


class ForestPlot(NamedTuple):
    """Differences of mAP with their intervals.

    Attributes:
        rows: the contrasts.
        ticks: (pixels, points of mAP) of each tick of the horizontal axis.
        zero: position of no difference, in pixels.
        width, height: size in pixels.
    """

    rows: list[PlotRow]
    ticks: list[tuple[float, float]]
    zero: float
    width: int
    height: int


def forest_plot(contrasts: Sequence[Contrast]) -> ForestPlot:
    """Places each primary contrast's mean and family-wise interval."""
    shown = [(contrast, contrast.family) for contrast in contrasts if contrast.family]
    ends = [value for _, family in shown for value in (family.low, family.high)] + [-0.01, 0.01]
    low, high = min(ends), max(ends)

    def x(value: float) -> float:
        return round(_LEFT + (value - low) / (high - low) * (_RIGHT - _LEFT), 1)

    rows = [
        PlotRow(
            f"{contrast.name} - {contrast.against} ({contrast.where})",
            contrast.verdict,
            _ROW_HEIGHT * i,
            x(family.low),
            x(family.mean),
            x(family.high),
        )
        for i, (contrast, family) in enumerate(shown, 1)
    ]
    step = next(step for step in _STEPS if (high - low) / step <= _MAX_TICKS)
    marks = np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step
    ticks = [(x(float(mark)), 100 * float(mark)) for mark in marks]
    return ForestPlot(rows, ticks, x(0.0), _RIGHT + 20, _ROW_HEIGHT * (len(rows) + 2))
