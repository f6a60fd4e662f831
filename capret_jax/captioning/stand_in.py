"""A small model that answers questions about drawings, where no other is named."""

import pathlib
import subprocess
import sys

from capret_jax.checkpoints.training import Checkpoints
from capret_jax.errors import InputError

_ROOT = pathlib.Path(__file__).parent.parent.parent
FOLDER = _ROOT / "runs" / "answerer"
_CONFIG = _ROOT / "configs" / "demo_pretrain.py"
# Fewer than the config's own 5,000, after which it is right more often, and no more honest.
_STEPS = 1500


def stand_in() -> str:
    """Its folder; it is trained if it is not there."""
    done = FOLDER / "trained"  # an interrupted training goes on
    if done.exists():
        return str(FOLDER)
    print(f"training a small model to answer, once, in {FOLDER}", flush=True)
    command = [sys.executable, "-m", "capret_jax.main", f"--config={_CONFIG}"]
    data = f"--config.data.prepared_dir={_ROOT / 'runs' / 'data'}"
    settings = ["--config.mode=train", f"--config.loop.steps={_STEPS}", data]
    try:
        subprocess.run([*command, f"--workdir={FOLDER}", *settings], check=True)
    except subprocess.CalledProcessError as error:
        raise InputError(f"the small model in {FOLDER} could not be trained: see above.") from error
    if Checkpoints(FOLDER, read_only=True).latest_step() != _STEPS:
        raise InputError("the small model's training was stopped: the same command goes on.")
    done.touch()
    return str(FOLDER)
