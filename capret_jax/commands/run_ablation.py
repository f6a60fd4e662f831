"""Does language help image retrieval? Runs the experiment and writes its report.

    python tools/run_ablation.py --config=configs/ablation.py --workdir=runs/ablation

Writes ablation.json, report.html and report.md into the workdir. An interrupted run resumes with
the next call. Any subset: --captions=none,conversation --objects=box --stages=fine_tuned --seeds=0
--embeddings=image; the report then covers that subset.

One process, on all of its devices. Once the initial model and the captions are there, other
machines that share the workdir can run other seeds; a last call with all seeds writes the report.
"""

import os
import pathlib

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax
from absl import flags
from ml_collections import config_flags

from capret_jax.ablation.grid import AXES, Grid
from capret_jax.ablation.report import write_results
from capret_jax.ablation.run import run_grid
from capret_jax.command_line import load_config, run
from capret_jax.datasets import open_dataset
from capret_jax.errors import InputError

_CONFIG = config_flags.DEFINE_config_file("config", None, "E.g. configs/ablation.py.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of all cells and the report.")
_SUBSET = {axis: flags.DEFINE_list(axis, [], f"The {axis} to run.") for axis in AXES}
flags.mark_flags_as_required(["config", "workdir"])


def main(argv: list[str]) -> None:
    """Runs the cells that are not complete, and writes the report."""
    if len(argv) > 1:
        raise InputError(f"unexpected argument {argv[1]!r}.")
    workdir = pathlib.Path(str(_WORKDIR.value)).absolute()
    values = load_config(_CONFIG)
    grid = Grid(values, workdir, _subset())
    workdir.mkdir(parents=True, exist_ok=True)
    # Cells that differ only in their data compile to the same programs.
    jax.config.update("jax_compilation_cache_dir", str(workdir / "compiled"))
    run_grid(grid, workdir, values.keep_models)
    dataset = open_dataset(grid.config_of(grid.evaluations()[0]).data)
    results = write_results(grid, dataset, workdir, tuple(values.read_by))
    print("\n".join(["", *results["conclusion"], f"report: {workdir / 'report.html'}"]))


def _subset() -> dict[str, list]:
    """Returns axis -> arms of the flags that are set."""
    subset: dict[str, list] = {axis: flag.value for axis, flag in _SUBSET.items() if flag.value}
    try:
        if "seeds" in subset:
            subset["seeds"] = [int(seed) for seed in subset["seeds"]]
    except ValueError as error:
        raise InputError(f"--seeds={','.join(subset['seeds'])}: whole numbers.") from error
    return subset


def cli() -> None:
    """Runs the command: the console script, and `tools/run_ablation.py`."""
    run(main)
