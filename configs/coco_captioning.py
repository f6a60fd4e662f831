"""X2-VLM large at 384 pixels, fine-tuned to write captions of COCO's pictures.

    python -m capret_jax.main --config=configs/coco_captioning.py --workdir=runs/captions

Starts from `tools/convert_torch_ckpt.py x2vlm_large_1b.th checkpoints/large`. docs/tasks.md
describes the files and the published results. Values are X2-VLM's, unless a comment says otherwise;
those that are not here are the same in `coco_retrieval.py`.
"""

import dataclasses
import pathlib
import runpy

from capret_jax.config import SIZES

_CAPTIONS = 566_747  # of the Karpathy training split
_BATCH, _EPOCHS = 256, 5  # the size of a batch is this project's own


def get_config():
    """Returns the config; every key can be overridden: --config.task.images=FOLDER."""
    config, epoch = _retrieval(), _CAPTIONS // _BATCH
    config.batch_size, config.init_from = _BATCH, "checkpoints/large"
    config.task.update(name="captioning", beams=3, min_tokens=5, max_tokens=50)
    config.model.update(dataclasses.asdict(SIZES["large"]))
    config.model.update(image_size=384, attention_dropout=0.1)
    config.data.cleaning = "none"  # captions are raw
    config.data.captions.prompt = "a picture of"
    # Of the tokens 0.6, at most 18, each behind a [MASK] that no other token sees.
    config.loss.update(itc=0.0, itm=0.0, mlm=1.0, mlm_causal=True, mlm_insert=True)
    config.loss.update(mlm_probability=0.6, mlm_max=18, mlm_spans="x2vlm", mlm_smoothing=0.1)
    config.optimizer.update(learning_rate=5e-6, fresh_multiplier=1.0)
    config.optimizer.rate_multipliers = (("model/vision/", 2.0),)  # 1e-5 in the vision encoder
    # The best epoch on the validation file is kept; docs/tasks.md tests it on another.
    config.loop.update(steps=_EPOCHS * epoch, checkpoint_every=epoch, evaluate_every=epoch)
    config.loop.keep_best = "CIDEr"
    return config


def _retrieval():
    """Returns the config of retrieval, with the same views, precision and warm-up."""
    path = pathlib.Path(__file__).with_name("coco_retrieval.py")
    return runpy.run_path(str(path))["get_config"]()
