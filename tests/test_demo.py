"""Quality gate: after a quarter of the demo's steps, mAP is higher than with broken losses.

Measured: mAP 0.27, 0.20 and 0.25 with seeds 0 to 2. The untrained model reaches 0.08, a loss whose
identities are shifted by one in the batch 0.05, and one without identities 0.05. The contrastive
loss of 64 pairs starts at ln 64 = 4.16 and falls to 3.8; with shifted captions it stays at 4.15.
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
        "--config.loop.steps=800",
        "--config.evaluation.detect=False",
        "--config.evaluation.rerank=0",
    ]
    # As `make demo`, and compiled as for users.
    environment = {**os.environ, "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", "XLA_FLAGS": ""}
    done = subprocess.run(
        [*command, *flags], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "run" / "evaluation" / "metrics.json").read_text())
    assert metrics["mAP"] > 0.13
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 800 and last["loss/itc"] < 4.0
