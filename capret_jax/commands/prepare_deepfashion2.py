"""Prepares a raw DeepFashion2 folder: checks every record, and writes what TFDS and Grain read.

    python tools/prepare_deepfashion2.py --source_dir=DeepFashion2 --out_dir=runs/data

Configs do the same at first use. An interrupted run goes on where it stopped. On a cluster:
--runner=FlinkRunner --beam_pipeline_options=flink_master=HOST:PORT, with folders that all workers
share.
"""

import json
import pathlib

from absl import flags

from capret_jax.command_line import run
from capret_jax.config import PrepareConfig
from capret_jax.data.preparation import NAME, REPORT, VERSION, prepare_deepfashion2

_SOURCE = flags.DEFINE_string(
    "source_dir", None, "The raw folder: train/{image,annos}, validation/...", required=True
)
_OUT = flags.DEFINE_string("out_dir", None, "As config.data.prepared_dir.", required=True)
_PROCESSES = flags.DEFINE_integer("processes", 0, "0 for one per core.")
_RUNNER = flags.DEFINE_string("runner", "", "Of Apache Beam (extra [beam]), e.g. DataflowRunner.")
_OPTIONS = flags.DEFINE_list("beam_pipeline_options", [], "As name=value,name=value.")
_ALLOW = flags.DEFINE_bool("allow_broken", False, "Even if more than 1 % is left out.")


def main(argv: list[str]) -> None:
    """Prints the report's numbers."""
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
