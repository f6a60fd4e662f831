"""The command that collects captions: mistakes in its flags."""

import pytest

from tests.commands.in_process import call

COMMAND = "capret_jax.commands.collect_captions"


@pytest.mark.parametrize(
    "options, message",
    [
        # Found before the small VQA model is trained.
        (["--questioner=http://127.0.0.1:9/v1"], "cannot be reached"),
        (["--config=absent.py"], "--config cannot be loaded"),
        (["--per_second=2"], "--per_second is for a server"),
        (["--method=captioner", "--sure=0.9"], "--sure is for --method=conversation"),
        (["--part=2/2"], "--part=2/2 is not i/n"),
        (["--prices=1"], "--prices takes two numbers"),
        (["--prices=1,cheap"], "--prices=1,cheap: two numbers"),
    ],
    ids=lambda value: str(value[0]) if isinstance(value, list) else "",
)
def test_mistakes_are_one_line(options, message, tmp_path):
    code, _, stderr = call(COMMAND, f"--out={tmp_path / 'out.jsonl'}", *options)
    assert code == 2
    assert message in stderr and len(stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())
