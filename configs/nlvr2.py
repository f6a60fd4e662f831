"""X2-VLM large at 384 pixels, fine-tuned to judge sentences about two pictures on NLVR2.

    python -m capret_jax.main --config=configs/nlvr2.py --workdir=runs/nlvr2

Starts from `tools/convert_torch_ckpt.py x2vlm_large_1b.th checkpoints/large`. docs/tasks.md
describes the files and the published results. X2-VLM published no config of this task: values are
those of `coco_retrieval.py`, but for what is here.
"""

import dataclasses
import pathlib
import runpy

from capret_jax.config import SIZES

_SENTENCES = 86_373  # of the training split
_BATCH, _EPOCHS = 80, 10  # 160 pictures


def get_config():
    """Returns the config; every key can be overridden: --config.task.images=FOLDER."""
    config, epoch = _retrieval(), _SENTENCES // _BATCH
    config.batch_size, config.init_from = _BATCH, "checkpoints/large"
    config.task.update(
        name="nlvr2",
        train=("datasets/nlvr_train.json",),
        test="datasets/nlvr_dev.json",
        images="datasets/nlvr2",
    )
    config.model.update(dataclasses.asdict(SIZES["large"]))
    # The head is fresh, and has twice the rate.
    config.model.update(image_size=384, attention_dropout=0.1, nlvr=True)
    config.loss.update(itc=0.0, itm=0.0, nlvr=1.0)
    # The best epoch on dev is kept; docs/tasks.md has the command for test-P.
    config.loop.update(steps=_EPOCHS * epoch, checkpoint_every=epoch, evaluate_every=epoch)
    config.loop.keep_best = "accuracy"
    config.evaluation.batch_size = 64
    return config


def _retrieval():
    """Returns the config of retrieval, with the same views, precision and warm-up."""
    path = pathlib.Path(__file__).with_name("coco_retrieval.py")
    return runpy.run_path(str(path))["get_config"]()
