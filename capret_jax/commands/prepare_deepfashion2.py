"""Prepares a raw DeepFashion2 folder: checks every record and writes ArrayRecord files for TFDS.

    python tools/prepare_deepfashion2.py --source_dir=DeepFashion2 --out_dir=runs/data

Training does the same at first use. A run that was interrupted continues at the shard where it
stopped. On a cluster: --runner=FlinkRunner --beam_pipeline_options=flink_master=HOST:PORT, with
folders that all workers share.
"""

import json
import pathlib

from absl import flags

from capret_jax.command_line import run
from capret_jax.config import PrepareConfig
from capret_jax.data.preparation import REPORT, VERSION, prepare_deepfashion2
from capret_jax.data.record_shards import NAME

_SOURCE = flags.DEFINE_string(
    "source_dir",
    None,
    "Raw folder with train/{image,annos} and validation/{image,annos}.",
    required=True,
)
_OUT = flags.DEFINE_string(
    "out_dir", None, "Folder of prepared datasets, config.data.prepared_dir.", required=True
)
_PROCESSES = flags.DEFINE_integer("processes", 0, "Number of processes; 0 for one per core.")
_RUNNER = flags.DEFINE_string("runner", "", "Apache Beam runner, e.g. DataflowRunner.")
_OPTIONS = flags.DEFINE_list("beam_pipeline_options", [], "Options of Beam: name=value,name=value.")
_ALLOW = flags.DEFINE_bool("allow_broken", False, "Accept more than 1 % left out.")


def main(argv: list[str]) -> None:
    """Prepares the dataset and prints the numbers of its report."""
    del argv
    config = PrepareConfig(_PROCESSES.value, _ALLOW.value, _RUNNER.value, tuple(_OPTIONS.value))
    prepare_deepfashion2(_SOURCE.value, _OUT.value, config)
    path = pathlib.Path(_OUT.value) / NAME / VERSION / REPORT
    for split, part in json.loads(path.read_text())["splits"].items():
        print(
            f"{split}: {part['images']} images of {part['files']} files, {part['items']} items, "
            f"{part['identities']} identities, {part['pairs']} of them seen by both sources"
        )
        for reason, count in part["skipped"].items():
            print(f"    left out: {count} x {reason}")
    print(f"report: {path}")


def cli() -> None:
    """Runs the command: the console script, and `tools/prepare_deepfashion2.py`."""
    run(main)
