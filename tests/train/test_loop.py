"""The training loop with a step that only counts: what is evaluated, saved and kept."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from capret_jax.checkpoints.training import Checkpoints
from capret_jax.config import ExperimentConfig, LoopConfig, MeshConfig
from capret_jax.data.batch import Batch
from capret_jax.distributed.mesh import make_mesh
from capret_jax.errors import InputError
from capret_jax.losses.memory import Memory
from capret_jax.train.loop import LoopServices, run_loop
from capret_jax.train.metrics import MetricsWriter
from capret_jax.train.preemption import PreemptionSignal
from capret_jax.train.state import TrainState
from capret_jax.train.trainer import Trainer


class Batches:
    """An iterator of equal batches, with a position that Orbax saves."""

    def __next__(self):
        zeros = np.zeros(1, np.int32)
        return Batch(*[zeros] * 7)

    def get_state(self):
        return {}


class Scores:
    """An evaluator with a score for each step."""

    def __init__(self, scores):
        self.scores, self.evaluated = scores, []

    def run(self, state):
        self.evaluated.append(int(state.step))
        return {"retrieval/mAP": self.scores[int(state.step)]}


def count(state, batch):
    return TrainState(state.step + 1, {"model": {"x": state.step + 1}}, ()), {
        "loss": (jnp.float32(1.0), jnp.float32(1.0))
    }


def abstract_of(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def checkpoints_without_data(folder):
    """Opens checkpoints of states alone; returns them and a list of the steps that they save."""
    checkpoints = Checkpoints(folder)
    saved = []
    original = checkpoints._checkpointer.save_checkpointables_async

    def save(step, checkpointables, **settings):
        saved.append(step)
        return original(step, {"state": checkpointables["state"]}, **settings)

    checkpoints._checkpointer.save_checkpointables_async = save
    return checkpoints, saved


def train(config, evaluator, folder):
    checkpoints, saved = checkpoints_without_data(folder)
    state = TrainState(jnp.int32(0), {"model": {"x": jnp.int32(0)}}, ())
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    with PreemptionSignal(0) as preemption:
        writer = MetricsWriter(folder, start=0)
        metadata = {"config": {"optimizer": {}}}
        services = LoopServices(count, checkpoints, metadata, writer, preemption, evaluator)
        state = run_loop(state, Batches(), config, mesh, services)
    checkpoints.close()
    writer.close()
    return state, saved


def test_the_best_checkpoint_is_kept_beside_the_newest(tmp_path):
    evaluator = Scores({2: 0.4, 4: 0.9, 6: 0.2, 8: 0.5, 9: 0.3})
    config = LoopConfig(9, log_every=3, checkpoint_every=5, evaluate_every=2, keep_best="mAP")
    state, saved = train(config, evaluator, tmp_path)
    # The last step is evaluated as well, since it may be the best.
    assert evaluator.evaluated == [2, 4, 6, 8, 9]
    assert saved == [2, 4, 5, 6, 8, 9]
    again = Checkpoints(tmp_path)
    assert (again.latest_step(), again.best_step()) == (9, 4)
    abstract = abstract_of(state)
    assert int(again.restore_best(abstract).step) == 4
    assert int(again.restore(abstract).step) == 9
    served = Checkpoints(tmp_path, read_only=True).restore_model(abstract.params["model"])
    assert int(served["x"]) == 4
    kept = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert kept == {"4", "8", "9"}


def test_of_equal_scores_the_newest_is_kept(tmp_path):
    config = LoopConfig(8, checkpoint_every=8, evaluate_every=1, keep_best="mAP")
    train(config, Scores(dict.fromkeys(range(1, 9), 0.1) | {2: 0.9, 4: 0.9}), tmp_path)
    assert Checkpoints(tmp_path).best_step() == 4


def test_without_scores_the_newest_checkpoint_is_the_best(tmp_path):
    evaluator = Scores({2: 0.4, 4: 0.9})
    config = LoopConfig(5, log_every=3, checkpoint_every=3, evaluate_every=2)
    state, saved = train(config, evaluator, tmp_path)
    assert evaluator.evaluated == [2, 4] and saved == [3, 5]
    again = Checkpoints(tmp_path)
    assert again.best_step() is None
    abstract = abstract_of(state)
    assert int(again.restore_best(abstract).step) == 5


def test_the_best_model_needs_an_evaluator():
    loop = LoopConfig(evaluate_every=1, keep_best="mAP")
    run = SimpleNamespace(config=SimpleNamespace(loop=loop))
    with pytest.raises(InputError, match="keep_best='mAP' needs an evaluator"):
        Trainer(run)


def test_every_part_of_the_state_is_restored(tmp_path):
    """A resumed run equals an uninterrupted one only if all that a step reads is restored."""
    weights = {"x": jnp.arange(4.0)}
    memory = Memory.empty(4, 2).pushed(jnp.ones((1, 2)), jnp.int32([3]), jnp.array([True]))
    params = {"model": weights, "arcface": jnp.ones((2, 1, 2))}
    average, start = {"x": jnp.arange(4.0) / 3}, {"x": jnp.arange(4.0) / 7}
    state = TrainState(jnp.int32(3), params, (jnp.int32(3),), average, start, memory)
    assert all(getattr(state, field.name) is not None for field in dataclasses.fields(state))
    checkpoints, saved = checkpoints_without_data(tmp_path)
    checkpoints.save(3, state, Batches(), {"config": {}})
    checkpoints.close()
    restored = Checkpoints(tmp_path, read_only=True).restore(abstract_of(state))
    assert saved == [3]
    jax.tree.map(np.testing.assert_array_equal, state, restored)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OlderState:
    """The training state of a version before `start`."""

    step: jax.Array
    params: dict
    opt_state: tuple
    average: dict | None = None


def test_a_checkpoint_of_an_older_version_is_restored(tmp_path):
    older = OlderState(jnp.int32(3), {"model": {"x": jnp.arange(4.0)}}, (jnp.int32(3),))
    checkpoints = Checkpoints(tmp_path)
    saving = checkpoints._checkpointer
    saving.save_checkpointables(3, {"state": older}, custom_metadata={"config": {}})
    state = TrainState(jnp.int32(0), {"model": {"x": jnp.zeros(4)}}, (jnp.int32(0),))
    abstract = abstract_of(state)
    restored = checkpoints.restore(abstract)
    assert restored.start is None and int(restored.opt_state[0]) == 3
    np.testing.assert_array_equal(restored.params["model"]["x"], np.arange(4.0))

    more = dataclasses.replace(abstract, start={"x": abstract.params["model"]["x"]})
    with pytest.raises(InputError, match=r"checkpoints/3 lacks 1 arrays of this run, .* start/x: "):
        checkpoints.restore(more)
    assert checkpoints.latest_step() == 3, "a whole checkpoint was set aside"
    checkpoints.close()


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"keep_best": "recall", "evaluate_every": 1}, "'recall' is none of mAP, top_1"),
        ({"keep_best": "mAP"}, "set loop.evaluate_every"),
    ],
)
def test_a_best_model_without_evaluations_is_refused(settings, message):
    with pytest.raises(InputError, match=message):
        ExperimentConfig(loop=LoopConfig(**settings))
