"""The trainer of a run, from its newest checkpoint or its initial state to the last step."""

import contextlib
import dataclasses

from capret_jax.checkpoints.lock import sole_writer
from capret_jax.checkpoints.training import Checkpoints
from capret_jax.data.batch_iterator import BatchIterator
from capret_jax.errors import InputError
from capret_jax.train.base_run import BaseRun
from capret_jax.train.evaluator import Evaluator
from capret_jax.train.loop import LoopServices, run_loop
from capret_jax.train.metrics import MetricsWriter
from capret_jax.train.preemption import RESUME, PreemptionSignal
from capret_jax.train.state import TrainState
from capret_jax.train.step import make_step


class Trainer:
    """Trains a run."""

    def __init__(self, run: BaseRun, evaluator: Evaluator | None = None):
        """
        Args:
            run: the run to train.
            evaluator: evaluator for states during training, every `loop.evaluate_every` steps;
                None for no evaluation.

        Raises:
            InputError: `loop.keep_best` is set, and no evaluator gives its metric.
        """
        if run.config.loop.keep_best and evaluator is None:
            raise InputError(
                f"config.loop.keep_best={run.config.loop.keep_best!r} needs an evaluator: "
                "Trainer(run, CurveEvaluator(context))."
            )
        self._run, self._evaluator = run, evaluator

    def train(self) -> bool:
        """Trains to the last step, from the newest checkpoint if there is one.

        Returns:
            False when SIGTERM stopped it: its state is saved, and the next call resumes from it.

        Raises:
            InputError: another run is training in the workdir, its checkpoints are of other items
                or cannot be read, or an image does not decode.
            FloatingPointError: a loss is not finite.
        """
        run = self._run
        with sole_writer(run.workdir):
            checkpoints = Checkpoints(run.workdir)
            try:
                with contextlib.closing(run.training_batches()) as iterator:
                    return self._resume(checkpoints, iterator)
            finally:
                checkpoints.close()
                run.checkpoints.reload()

    def _resume(self, checkpoints: Checkpoints, iterator: BatchIterator) -> bool:
        """Trains to the last step; returns False if SIGTERM stopped it."""
        run, last, done = self._run, self._run.config.loop.steps, 0
        data = run.config.data
        if checkpoints.latest_step() is not None:
            run.check_data(checkpoints.metadata().get("fingerprints", {}))
            # Read even if the run is finished: the last checkpoint may be damaged.
            state = checkpoints.restore(run.abstract_state, iterator)
            done = int(state.step)
        if done >= last:
            print(f"{run.workdir} is trained to step {done} already.")
            return True
        if share := run.truncated_captions():
            print(
                f"config.data.max_words={data.max_words} and config.data.max_tokens="
                f"{data.max_tokens} cut {100 * share:.1f} % of the captions: they lose their ends."
            )
        if done:
            print(f"resuming from step {done} of {last}")
        else:
            state = run.initial_state()
        done, stopped = self._train(state, iterator, checkpoints)
        if stopped:
            print(f"stopped by SIGTERM at step {done} of {last}, saved: {RESUME}")
        return not stopped

    def _train(
        self, state: TrainState, iterator: BatchIterator, checkpoints: Checkpoints
    ) -> tuple[int, bool]:
        """Returns the last step, and True if SIGTERM came before its state was written."""
        run = self._run
        metadata = {
            "config": dataclasses.asdict(run.config),
            "untrained": run.untrained_parameters(),
            "fresh": run.setup.fresh,
            "fingerprints": run.fingerprints,
        }
        writer = MetricsWriter(run.files.folder, int(state.step), run.files.publish)
        try:
            with PreemptionSignal(int(state.step)) as preemption:
                services = LoopServices(
                    make_step(run.setup),
                    checkpoints,
                    metadata,
                    writer,
                    preemption,
                    self._evaluator,
                )
                state = run_loop(state, iterator, run.config.loop, run.mesh, services)
                # Before the signal would end the process: the last checkpoint is being written.
                checkpoints.wait()
                return int(state.step), preemption.received()
        finally:
            writer.close()
            run.files.publish()
