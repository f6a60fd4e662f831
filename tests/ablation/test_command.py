"""The command line of the ablation: mistakes are one line and exit code 2."""

import pytest

from tests.ablation.conftest import CONFIGS
from tests.commands.in_process import call


@pytest.mark.parametrize(
    "argument, message",
    [
        ("--captions=haiku", "captions has no arm 'haiku'"),
        ("--seeds=one", "--seeds=one: whole numbers"),
        ("more", "unexpected argument 'more'"),
        ("--config.sead=1", "sead"),
        ("--config.collected.conversation.looker=DIR", "config.collected.conversation.vqa_model"),
        ("--config.embeddings.text.said=('none',)", "config.embeddings.text.captions"),
    ],
)
def test_a_mistake_is_one_line(argument, message, tmp_path):
    code, _, stderr = call(
        "capret_jax.commands.run_ablation",
        f"--config={CONFIGS / 'ablation.py'}",
        f"--workdir={tmp_path / 'x'}",
        argument,
    )
    assert code == 2
    assert message in stderr and stderr.count("\n") == 1
    assert not (tmp_path / "x").exists()
