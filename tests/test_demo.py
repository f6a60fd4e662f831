"""Quality gate: after a sixteenth of the demo's steps, mAP is higher than with broken losses.

Measured with seed 0: mAP 0.464. The untrained model reaches 0.180, and a loss whose identities are
shifted by one in the batch 0.090, after twice as many steps. The contrastive loss of 64 pairs
starts at ln 64 = 4.16 and falls to 3.96; with shifted captions it stays at 4.16. The best constant
box has an IoU of 0.63 with the boxes of wide views, and the predicted ones 0.67.
"""

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
def test_a_shortened_demo_learns_to_find_garments(tmp_path):
    command = [sys.executable, "-m", "capret_jax.main", "--config=configs/demo.py"]
    flags = [
        f"--workdir={tmp_path / 'run'}",
        f"--config.data.prepared_dir={tmp_path / 'data'}",
        "--config.loop.steps=200",
        "--config.loss.locations=0",
        "--config.evaluation.detect=False",
        "--config.evaluation.rerank=0",
        "--config.evaluation.baselines=False",
    ]
    # As `make demo`, and compiled as for users.
    environment = {**os.environ, "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", "XLA_FLAGS": ""}
    done = subprocess.run(
        [*command, *flags], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "run" / "evaluation" / "metrics.json").read_text())
    assert metrics["mAP"] > 0.33
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 200 and last["loss/itc"] < 4.05
    assert last["box_giou/iou"] > 0.65
