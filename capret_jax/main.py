"""Trains and evaluates: python -m capret_jax.main --config=configs/demo.py --workdir=DIR"""

import os
import pathlib
import signal
from types import FrameType

# Libraries read these at import: no advice on installing torch, no XLA banners.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax
from absl import flags
from ml_collections import config_flags

from capret_jax.buckets.access import open_workdir
from capret_jax.buckets.urls import url_scheme
from capret_jax.command_line import load_config
from capret_jax.command_line import run as run_program
from capret_jax.config import ExperimentConfig, from_config_dict
from capret_jax.distributed.process_group import exit_with_group, join
from capret_jax.errors import InputError
from capret_jax.evaluation.retrieval import CurveEvaluator
from capret_jax.evaluation.suite import EVALUATION, EvaluationSuite
from capret_jax.evaluation.summary import summary
from capret_jax.tasks.curve import TaskCurve, task_summary
from capret_jax.tasks.evaluators import make_evaluator
from capret_jax.tasks.evaluators.suite import write_results
from capret_jax.tasks.run import TaskRun
from capret_jax.train.base_run import BaseRun
from capret_jax.train.evaluator import Evaluator
from capret_jax.train.preemption import RESUME
from capret_jax.train.run import Run
from capret_jax.train.trainer import Trainer

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, e.g. configs/demo.py.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of checkpoints, curves and results.")
_COORDINATOR = flags.DEFINE_string(
    "coordinator_address", None, "host:port of process 0, when there are several processes."
)
_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of processes.")
_PROCESS = flags.DEFINE_integer("process_id", None, "Index of this process, from 0.")
_DISTRIBUTED = flags.DEFINE_boolean(
    "distributed", False, "Join the processes that Slurm, Open MPI or a TPU pod started."
)
_JOIN_TIMEOUT = flags.DEFINE_integer(
    "join_timeout", 300, "Seconds within which all processes have to come together.", 1
)
flags.mark_flags_as_required(["config", "workdir"])


def main(argv: list[str]) -> None:
    """Trains and evaluates the run that the flags describe."""
    if len(argv) > 1:
        raise InputError(f"unexpected argument {argv[1]!r}; overrides look like --config.seed=1.")
    signal.signal(signal.SIGTERM, _stop)
    config = from_config_dict(load_config(_CONFIG))
    join(
        _COORDINATOR.value,
        _PROCESSES.value,
        _PROCESS.value,
        _DISTRIBUTED.value,
        _JOIN_TIMEOUT.value,
    )
    execute = _run_task if config.task.name else _run_items
    execute(config, _make_workdir(str(_WORKDIR.value)))


def _run_items(config: ExperimentConfig, workdir: pathlib.Path) -> None:
    """Trains and evaluates on photographs and shop items."""
    run = Run(config, workdir)
    suite = EvaluationSuite(run)
    if _train(run, CurveEvaluator(suite.context)):
        print(summary(suite.run(run.state_to_evaluate()), run.workdir / EVALUATION))


def _run_task(config: ExperimentConfig, workdir: pathlib.Path) -> None:
    """Trains and evaluates on one of X2-VLM's tasks."""
    run = TaskRun(config, workdir)
    evaluator = make_evaluator(run)
    if _train(run, TaskCurve(evaluator, config.task.name)):
        results = evaluator.measure(run.state_to_evaluate().model)
        write_results(run.files.folder / EVALUATION, results)
        run.files.publish(replaced=EVALUATION)
        print(task_summary(results.metrics, run.workdir / EVALUATION))


def _train(run: BaseRun, evaluator: Evaluator) -> bool:
    """Trains a run as its mode says; returns True if it is to be evaluated then.

    Args:
        run: the run.
        evaluator: evaluator for the training curve.
    """
    config = run.config
    if config.mode == "evaluate":
        return True
    trained = Trainer(run, evaluator if config.loop.evaluate_every else None).train()
    return trained and config.mode != "train"


def _stop(number: int, frame: FrameType | None) -> None:
    """Handles SIGTERM outside of training, where there is nothing to save."""
    del number, frame
    print(f"stopped by SIGTERM: {RESUME}", flush=True)
    exit_with_group(0, "stopped by SIGTERM")


def _make_workdir(path: str) -> pathlib.Path:
    if url_scheme(path):
        return open_workdir(path)
    workdir = pathlib.Path(path).absolute()
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / f".writable{jax.process_index()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"--workdir={path} cannot be written ({error.strerror}); choose another folder."
        ) from error
    return workdir


def cli() -> None:
    """Runs the command: the console script."""
    run_program(main, buckets=("workdir",))


if __name__ == "__main__":
    run_program(main, buckets=("workdir",))
