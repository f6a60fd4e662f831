"""A small VQA model for the synthetic dataset, for use when no other model is named."""

import pathlib
import subprocess
import sys

from capret_jax.checkpoints.training import Checkpoints
from capret_jax.errors import InputError

_ROOT = pathlib.Path(__file__).parent.parent.parent
FOLDER = _ROOT / "runs" / "answerer"
_CONFIG = _ROOT / "configs" / "demo_pretrain.py"
# Fewer than the config's 5,000 steps, which improve the accuracy but not the calibration.
_STEPS = 1500


def ensure_demo_vqa_model() -> str:
    """Returns the folder of the small model, and trains it if it is not there.

    Raises:
        InputError: its config is missing, since the package was installed without the repository,
            or the training failed or was stopped.
    """
    done = FOLDER / "trained"  # absent after an interrupted training, which is then resumed
    if done.exists():
        return str(FOLDER)
    if not _CONFIG.exists():
        raise InputError(
            f"the small model for the synthetic dataset is trained by {_CONFIG}, which is part of "
            "the repository and not of the installed package: set --model to a folder with a "
            "model, or run from a checkout of the repository."
        )
    print(f"training a small VQA model, once, in {FOLDER}", flush=True)
    command = [sys.executable, "-m", "capret_jax.main", f"--config={_CONFIG}"]
    data = f"--config.data.prepared_dir={_ROOT / 'runs' / 'data'}"
    settings = ["--config.mode=train", f"--config.loop.steps={_STEPS}", data]
    try:
        subprocess.run([*command, f"--workdir={FOLDER}", *settings], check=True)
    except subprocess.CalledProcessError as error:
        raise InputError(f"the small model in {FOLDER} could not be trained: see above.") from error
    if Checkpoints(FOLDER, read_only=True).latest_step() != _STEPS:
        raise InputError(
            "the training of the small model was stopped: run the same command again to go on."
        )
    done.touch()
    return str(FOLDER)
