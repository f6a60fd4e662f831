"""X2-VLM large at 384 pixels, fine-tuned to find objects by phrases on RefCOCO+.

    python -m capret_jax.main --config=configs/refcoco_plus.py --workdir=runs/refcoco

Starts from `tools/convert_torch_ckpt.py x2vlm_large_1b.th checkpoints/large`. docs/tasks.md
describes the files and the published results. Values are X2-VLM's, unless a comment says otherwise;
those that are not here are the same in `coco_retrieval.py`.
"""

import dataclasses
import pathlib
import runpy

from capret_jax.config import SIZES

_PHRASES = 120_191  # of REFER's split "train"
_BATCH, _EPOCHS = 160, 10  # 20 pictures on each of 8 GPUs, as X-VLM


def get_config():
    """Returns the config; every key can be overridden: --config.task.images=FOLDER."""
    config, epoch = _retrieval(), _PHRASES // _BATCH
    config.batch_size, config.init_from = _BATCH, "checkpoints/large"
    config.task.update(
        name="grounding",
        train=("datasets/refcoco+_train.json",),
        test="datasets/refcoco+_val.json",
        images="datasets/coco",
        refs="datasets/refcoco+/refs(unc).p",
        instances="datasets/refcoco+/instances.json",
    )
    config.model.update(dataclasses.asdict(SIZES["large"]))
    # Stochastic depth in place of dropout on hidden states.
    config.model.update(image_size=384, dropout=0.0, attention_dropout=0.1, text_drop_path=0.1)
    # Windows that contain the box, flipped with it, and RandAugment(2, 7) of operations that move
    # no pixels.
    config.data.augment.update(region_crop=True, crop_area=1.0)
    config.loss.update(itc=0.0, itm=0.0, box_l1=1.0, box_giou=1.0)
    config.optimizer.update(learning_rate=1e-5, fresh_multiplier=1.0)
    # The best epoch on val is kept; docs/tasks.md has the command for testA and testB.
    config.loop.update(steps=_EPOCHS * epoch, checkpoint_every=epoch, evaluate_every=epoch)
    config.loop.keep_best = "accuracy"
    return config


def _retrieval():
    """Returns the config of retrieval, with the same views, precision and warm-up."""
    path = pathlib.Path(__file__).with_name("coco_retrieval.py")
    return runpy.run_path(str(path))["get_config"]()
