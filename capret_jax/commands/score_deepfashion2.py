"""Scores a result file in DeepFashion2's format by its official rules.

    python tools/score_deepfashion2.py RESULTS.json --query=Q.json --gallery=G.json

`--query_iou_floor=0.5` requires that detections overlap their query item; the official rules do
not. `--json=OUT` also writes the metrics to a file.
"""

import json
import pathlib

from absl import flags

from capret_jax.command_line import ARGUMENTS, run
from capret_jax.errors import InputError
from capret_jax.evaluation.official_scorer import (
    GALLERY_KEYS,
    QUERY_KEYS,
    RESULT_KEYS,
    read_entries,
    score,
)

_QUERY = flags.DEFINE_string("query", None, "Ground truth of the queries.", required=True)
_GALLERY = flags.DEFINE_string("gallery", None, "Ground truth of the gallery.", required=True)
_FLOOR = flags.DEFINE_float(
    "query_iou_floor", 0.0, "Least overlap of a detection with its query item.", 0.0, 1.0
)
_JSON = flags.DEFINE_string("json", None, "JSON file to write the metrics to.")


def main(argv: list[str]) -> None:
    """Prints the metrics, one a line.

    Raises:
        InputError: the arguments are wrong, or a file cannot be read or written.
    """
    if len(argv) != 2:
        raise InputError(f"expected RESULTS.json, got {argv[1:]}; see --help.")
    metrics = score(
        read_entries(argv[1], RESULT_KEYS),
        read_entries(_QUERY.value, QUERY_KEYS),
        read_entries(_GALLERY.value, GALLERY_KEYS),
        _FLOOR.value,
    ).as_dict()
    for name, value in metrics.items():
        print(f"{name:16}{value:>8}" if isinstance(value, int) else f"{name:16}{value:8.3f}")
    if _JSON.value:
        try:
            pathlib.Path(_JSON.value).write_text(json.dumps(metrics, indent=1) + "\n")
        except OSError as error:
            raise InputError(f"--json={_JSON.value} cannot be written: {error}.") from error


def cli() -> None:
    """Entry point of the console script and of `tools/score_deepfashion2.py`."""
    run(main, buckets=("query", "gallery", ARGUMENTS))
