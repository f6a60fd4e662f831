"""Runs on a task: resuming, their data, what they start from, and the command."""

import dataclasses
import json
import os
import signal

import jax
import numpy as np
import pytest

from capret_jax.config import to_config_dict
from capret_jax.data.tokenizer import build_vocabulary
from capret_jax.errors import InputError
from capret_jax.tasks.run import TaskRun
from capret_jax.train import trainer
from capret_jax.train.trainer import Trainer
from tests.commands import in_process
from tests.tasks.test_readers import change_first, edit


def evaluating(config, **changes):
    return dataclasses.replace(config, mode="evaluate", **changes)


@pytest.mark.slow
def test_a_stopped_run_goes_on_with_its_own_examples_alone(
    task_config, one_device, tmp_path, monkeypatch, capsys
):
    config, original = task_config("nlvr2", steps=4), trainer.make_step
    assert Trainer(TaskRun(config, tmp_path / "whole")).train()

    def make_step(setup):
        step = original(setup)

        def stopped(state, batch):
            if int(state.step) == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return step(state, batch)

        return stopped

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "make_step", make_step)
        assert not Trainer(TaskRun(config, tmp_path)).train()
    capsys.readouterr()

    edit(config.task.train[0], change_first(sentence="both have a colour"))
    with pytest.raises(InputError, match="trained on 16 examples, and these are 16, or others"):
        Trainer(TaskRun(config, tmp_path)).train()
    edit(config.task.train[0], change_first(sentence="both have one colour"))
    assert Trainer(TaskRun(config, tmp_path)).train()
    assert "resuming from step 2 of 4" in capsys.readouterr().out
    ends = [TaskRun(config, path).state_to_evaluate() for path in (tmp_path, tmp_path / "whole")]
    jax.tree.map(np.testing.assert_array_equal, *(end.params for end in ends))


def test_a_start_without_the_tasks_head_is_not_evaluated(task_config, tmp_path):
    build_vocabulary(["both have one colour"], tmp_path / "vocab.txt", 256)
    config = evaluating(task_config("nlvr2"))
    data = dataclasses.replace(config.data, tokenizer=str(tmp_path / "vocab.txt"))
    run = TaskRun(dataclasses.replace(config, data=data), tmp_path)
    assert run.train.rows == ()
    with pytest.raises(InputError, match="pretrain checkpoint. holds no nlvr_head.*of this task"):
        run.state_to_evaluate()


def test_evaluation_alone_builds_no_vocabulary(task_config, tmp_path):
    with pytest.raises(InputError, match="config.data.tokenizer is empty"):
        TaskRun(evaluating(task_config("nlvr2")), tmp_path)


def test_the_best_by_accuracy_needs_answers(task_config, tmp_path):
    config = task_config("vqa")
    loop = dataclasses.replace(config.loop, evaluate_every=1, keep_best="accuracy")
    config = dataclasses.replace(config, loop=loop)
    edit(config.task.test, lambda rows: [{**row, "answer": None} for row in rows])
    with pytest.raises(InputError, match="keep_best='accuracy' needs answers, and config.task.te"):
        TaskRun(config, tmp_path)


def test_what_is_left_out_is_said_at_the_start(task_config, tmp_path, capsys):
    config = task_config("retrieval")
    (tmp_path / "files/images/val/picture_000001.png").unlink()
    task = dataclasses.replace(config.task, allow_missing=True)
    run = TaskRun(dataclasses.replace(config, batch_size=8, task=task), tmp_path)
    printed = capsys.readouterr().out
    assert "train.json: 2 of 16 examples are left out, because of 1 missing pictures" in printed
    assert "test.json: 1 of 8 examples are left out" in printed
    assert (run.train.left_out, run.test.left_out) == (2, 1)


def test_long_texts_are_reported(task_config, tmp_path):
    config = task_config("retrieval")
    data = dataclasses.replace(config.data, max_tokens=5)
    # "a red picture" has five tokens with [CLS] and [SEP], "this is plain red" six or more.
    share = TaskRun(dataclasses.replace(config, data=data), tmp_path).truncated_captions()
    assert 0.5 <= share < 1


@pytest.fixture
def restore_sigterm():
    """Restores the handler that the command replaces."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def test_the_command_trains_and_evaluates_a_task(
    task_config, one_device, tmp_path, restore_sigterm
):
    config = task_config("nlvr2", steps=3)
    loop = dataclasses.replace(config.loop, evaluate_every=2, keep_best="accuracy")
    config = dataclasses.replace(config, loop=loop)
    (tmp_path / "config.json").write_text(json.dumps(to_config_dict(config).to_dict()))
    (tmp_path / "task.py").write_text(
        "import json, ml_collections, pathlib\n"
        "def get_config():\n"
        "    path = pathlib.Path(__file__).with_name('config.json')\n"
        "    return ml_collections.ConfigDict(json.loads(path.read_text()))\n"
    )
    workdir = tmp_path / "run"
    flags = f"--config={tmp_path / 'task.py'}", f"--workdir={workdir}"
    code, output, errors = in_process.call("capret_jax.main", *flags)
    assert code == 0, errors
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    curve = {x["step"]: x["nlvr2/accuracy"] for x in lines if "nlvr2/accuracy" in x}
    assert curve.keys() == {2, 3}
    metrics = json.loads((workdir / "evaluation" / "metrics.json").read_text())
    assert metrics["accuracy"] == max(curve.values()) and metrics["left_out"] == 0
    assert len(json.loads((workdir / "evaluation" / "judgements.json").read_text())) == 16
    assert f"{metrics['accuracy']:.3f}" in output and "the best by accuracy" in output
