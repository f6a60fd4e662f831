"""Evaluates a checkpoint on a task of X2-VLM, without training, by the task's official metric.

    python tools/evaluate_checkpoint.py DIR --task=retrieval --data=coco_test.json --images=coco
    python tools/evaluate_checkpoint.py DIR --task=vqa --data=vqa_test.json --images=coco
        --answers=answer_list.json --image_size=768
    python tools/evaluate_checkpoint.py DIR --task=grounding --data=refcoco+_testA.json
        --images=coco --refs='refs(unc).p' --instances=instances.json

DIR is a converted checkpoint or a training workdir; docs/tasks.md describes the files. Writes
metrics.json, and the results in the task's format, to DIR/evaluation_TASK or --out.
"""

import os
import pathlib
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import jax
from absl import flags

from capret_jax.command_line import run
from capret_jax.config import EvaluationConfig, TaskConfig
from capret_jax.config.data import RESIZES
from capret_jax.config.model import DTYPES
from capret_jax.config.task import TASK_LOSSES
from capret_jax.errors import InputError
from capret_jax.tasks.checkpoint_run import CheckpointRun, CheckpointSettings
from capret_jax.tasks.curve import task_summary
from capret_jax.tasks.evaluators import make_evaluator
from capret_jax.tasks.evaluators.suite import check_replaceable, write_results

_TASK = flags.DEFINE_enum("task", None, list(TASK_LOSSES), "The task.", required=True)
_DATA = flags.DEFINE_string("data", None, "Annotation file to evaluate on.", required=True)
_IMAGES = flags.DEFINE_string("images", None, "Folder of the pictures.", required=True)
_ANSWERS = flags.DEFINE_string("answers", "", "VQA: the list of answers, answer_list.json.")
_REFS = flags.DEFINE_string("refs", "", "Grounding: REFER's references, a pickle or JSON.")
_INSTANCES = flags.DEFINE_string("instances", "", "Grounding: COCO's instances.json.")
_MISSING = flags.DEFINE_bool("allow_missing", False, "Accept that many pictures are missing.")
_TOP_K = flags.DEFINE_integer("top_k", 0, "Retrieval: candidates to re-rank; 0 for 256.", 0)
_PROMPT = flags.DEFINE_string("prompt", None, "Captioning: by default that of the checkpoint.")
_OUT = flags.DEFINE_string("out", "", "Folder of the results; by default DIR/evaluation_TASK.")
_SIZE = flags.DEFINE_integer("image_size", 0, "Pixels; 0 for the checkpoint's size.", 0)
_RESIZE = flags.DEFINE_enum("resize", "pillow", RESIZES, "Pillow's bicubic filter, or faster.")
_BATCH = flags.DEFINE_integer("batch_size", 32, "Pictures in a batch, over all devices.", 1)
_PRECISION = flags.DEFINE_enum("precision", "float32", DTYPES, "Of matrix products.")
_TOKENIZER = flags.DEFINE_string("tokenizer", "", "Tokenizer in place of the model's own.")
_CACHE_MB = flags.DEFINE_integer("cache_mb", 4096, "Retrieval: states in memory; more in files.", 1)
_CACHE_DIR = flags.DEFINE_string("cache_dir", "", "Folder of these files.")


def main(argv: list[str]) -> None:
    """Evaluates, writes the results and prints the metrics.

    Raises:
        InputError: the arguments or the files do not fit the task or the model.
    """
    if len(argv) != 2:
        raise InputError(f"expected one DIR, got {argv[1:]}; see --help.")
    _check_flags()
    settings = CheckpointSettings(
        _SIZE.value,
        _RESIZE.value,
        _PROMPT.value,
        _TOKENIZER.value,
        _PRECISION.value,
        EvaluationConfig(
            batch_size=_BATCH.value, cache_mb=_CACHE_MB.value, cache_dir=_CACHE_DIR.value
        ),
    )
    # A resolved path has a name and a parent, which "." lacks.
    out = pathlib.Path(_OUT.value or pathlib.Path(argv[1]) / f"evaluation_{_TASK.value}").resolve()
    check_replaceable(out, "--out")
    checkpoint = CheckpointRun.open(argv[1], _task(), settings)
    first = jax.process_index() == 0
    for note in checkpoint.test.notes if first else ():
        print(note)
    results = make_evaluator(checkpoint).measure(checkpoint.params)
    write_results(out, results)
    if first:
        print(task_summary(results.metrics, out))


def _check_flags() -> None:
    """Checks that no flag of one task alone is given to another."""
    for flag, owner in (
        (_CACHE_MB, "retrieval"),
        (_CACHE_DIR, "retrieval"),
        (_PROMPT, "captioning"),
    ):
        if flag.value != flag.default and _TASK.value != owner:
            raise InputError(
                f"--{flag.name}={flag.value} is of --task={owner}, and --task={_TASK.value} does "
                "not read it: leave it out."
            )


def _task() -> TaskConfig:
    options: dict[str, Any] = {
        "answers": _ANSWERS.value,
        "refs": _REFS.value,
        "instances": _INSTANCES.value,
        "top_k": _TOP_K.value,
    }
    return TaskConfig(
        name=_TASK.value,
        test=_DATA.value,
        images=_IMAGES.value,
        allow_missing=_MISSING.value,
        **{name: value for name, value in options.items() if value},
    )


def cli() -> None:
    """Runs the command: the console script, and `tools/evaluate_checkpoint.py`."""
    run(main)
