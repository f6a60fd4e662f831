"""Training metrics: (sum, count) pairs on the device, then TensorBoard and JSON lines."""

import json
import math
import os
import pathlib

import jax
import numpy as np
from tensorboardX import SummaryWriter

from capret_jax.losses import Metrics


def merge(steps: list[Metrics]) -> dict[str, float]:
    """Fetches the metrics of several steps and divides the summed sums by the summed counts."""
    fetched = jax.device_get(steps)
    merged = {}
    for name in fetched[0]:
        total, count = np.sum([metrics[name] for metrics in fetched], axis=0)
        merged[name] = float(total / count) if count else math.nan
    return merged


def check_finite(metrics: dict[str, float], step: int) -> None:
    """Stops training that has gone wrong.

    Raises:
        FloatingPointError: a loss or the gradient is not finite; the message names the terms.
    """
    watched = [name for name in metrics if name.startswith("loss") or name == "gradient_norm"]
    bad = [name for name in watched if not math.isfinite(metrics[name])]
    if bad:
        terms = [name for name in bad if name.startswith("loss/")] or bad
        raise FloatingPointError(
            f"{', '.join(terms)} not finite by step {step}: lower optimizer.learning_rate, or set "
            "optimizer.clip_norm; the last checkpoint is from before."
        )


class MetricsWriter:
    """Appends to `metrics.jsonl` and TensorBoard event files; silent on all processes but one."""

    def __init__(self, directory: str | os.PathLike, start: int = 0):
        """
        Args:
            directory: of the files.
            start: the step that training goes on from; what a killed run wrote past it is dropped.
        """
        self._active = jax.process_index() == 0
        if self._active:
            path = pathlib.Path(directory) / "metrics.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            _drop_after(path, start)
            self._lines = path.open("a", buffering=1)
            self._board = SummaryWriter(str(path.parent), purge_step=start + 1)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """One line, and one point per metric."""
        if not self._active:
            return
        self._lines.write(json.dumps({"step": step, **metrics}) + "\n")
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Writes what is left."""
        if self._active:
            self._lines.close()
            self._board.close()


def _drop_after(path: pathlib.Path, step: int) -> None:
    """Keeps the lines up to a step; a last line that a kill cut short goes too."""
    if not path.exists():
        return
    lines = [line for line in path.read_text().splitlines() if line.endswith("}")]
    kept = [line for line in lines if json.loads(line)["step"] <= step]
    path.write_text("".join(f"{line}\n" for line in kept))
