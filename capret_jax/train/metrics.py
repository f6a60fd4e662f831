"""Training metrics: merging of (sum, count) pairs, and their TensorBoard and JSON lines files."""

import json
import math
import os
import pathlib
from collections.abc import Callable

import jax
import numpy as np
from tensorboardX import SummaryWriter

from capret_jax.errors import MALFORMED_JSON
from capret_jax.losses import Metrics


def merge(steps: list[Metrics]) -> dict[str, float]:
    """Fetches the metrics of several steps and divides the totals of sums by those of counts."""
    fetched = jax.device_get(steps)
    merged = {}
    for name in fetched[0]:
        total, count = np.sum([metrics[name] for metrics in fetched], axis=0)
        merged[name] = float(total / count) if count else math.nan
    return merged


def check_finite(metrics: dict[str, float], step: int) -> None:
    """Checks that training has not diverged.

    Raises:
        FloatingPointError: a loss or the gradient is not finite; the message names the terms.
    """
    checked = [name for name in metrics if name.startswith("loss") or name == "gradient_norm"]
    bad = [name for name in checked if not math.isfinite(metrics[name])]
    if bad:
        terms = [name for name in bad if name.startswith("loss/")] or bad
        raise FloatingPointError(
            f"{', '.join(terms)} not finite by step {step}: lower optimizer.learning_rate, or set "
            "optimizer.clip_norm; the last checkpoint is from before."
        )


class MetricsWriter:
    """Appends to `metrics.jsonl` and TensorBoard event files; active only on process 0."""

    def __init__(
        self,
        directory: str | os.PathLike,
        start: int = 0,
        written: Callable[[], None] = lambda: None,
    ):
        """
        Args:
            directory: folder of the files, made if it is missing.
            start: step that training resumes from; points that a killed run wrote after it are
                removed.
            written: function that is called after every line.
        """
        self._written = written
        self._active = jax.process_index() == 0
        if self._active:
            path = pathlib.Path(directory) / "metrics.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            _drop_after(path, start)
            self._lines = path.open("a", buffering=1)
            self._board = SummaryWriter(str(path.parent), purge_step=start + 1)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Appends one line, and one TensorBoard point per metric."""
        if not self._active:
            return
        self._lines.write(json.dumps({"step": step, **metrics}) + "\n")
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)
        self._written()

    def close(self) -> None:
        """Flushes and closes the files."""
        if self._active:
            self._lines.close()
            self._board.close()


def _drop_after(path: pathlib.Path, step: int) -> None:
    """Removes the lines after a step, and those that a kill or a damage left incomplete."""
    if not path.exists():
        return

    def is_kept(line: str) -> bool:
        try:
            return json.loads(line)["step"] <= step
        except MALFORMED_JSON:
            return False

    lines = path.read_text(errors="replace").splitlines()
    path.write_text("".join(f"{line}\n" for line in lines if is_kept(line)))
