"""Each task is trained from a converted random checkpoint, and learns its tiny set."""

import pytest

from capret_jax.tasks.evaluators import make_evaluator
from capret_jax.tasks.run import TaskRun
from capret_jax.train.trainer import Trainer

# Task -> steps, and metric -> what it has to exceed: more than what guessing gives.
LEARNT = {
    "retrieval": (120, {"tr_1": 0.5, "ir_1": 0.5}),
    "vqa": (80, {"accuracy": 0.5}),
    "grounding": (350, {"accuracy": 0.6}),
    "captioning": (200, {"CIDEr": 1.0}),
    "detection": (200, {"AP50": 0.3}),
    "nlvr2": (40, {"accuracy": 0.8}),
}
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in LEARNT if name != "nlvr2"]


@pytest.mark.parametrize("name", ["nlvr2", *SLOW])
def test_a_task_is_learnt(name, task_config, one_device, tmp_path):
    steps, bounds = LEARNT[name]
    run = TaskRun(task_config(name, steps), tmp_path)
    evaluator = make_evaluator(run)
    before = evaluator.run(run.initial_state())
    assert Trainer(run).train()
    after = evaluator.run(run.state_to_evaluate())
    print(name, before, after)
    for metric, bound in bounds.items():
        assert before[metric] < bound < after[metric]
