"""X2-VLM base at 384 pixels, trained to write where the objects of COCO's pictures are (Pix2Seq).

    python -m capret_jax.main --config=configs/coco_detection.py --workdir=runs/coco_detection

Starts from `tools/convert_torch_ckpt.py x2vlm_base_1b.th checkpoints/base`; fine-tuning on garments
can start from the result (`init_from`). docs/tasks.md describes the files. Scale jitter, rates and
decay are Pix2Seq's (arXiv 2109.10852), sizes and steps this project's own.
"""

import pathlib
import runpy

_PICTURES = 118_287  # of train2017
_BATCH, _EPOCHS = 128, 40


def get_config():
    """Returns the config; every key can be overridden: --config.task.images=FOLDER."""
    config, epoch = _retrieval(), _PICTURES // _BATCH
    config.batch_size = _BATCH
    config.task.update(
        name="detection",
        train=("datasets/coco/annotations/instances_train2017.json",),
        test="datasets/coco/annotations/instances_val2017.json",
        images="datasets/coco",
    )
    config.task.top_k = 256  # the default: it is of retrieval
    config.model.update(location_layers=6, location_items=100, location_classes=80)
    config.data.augment.update(crop_area=1.0, randaugment=0)
    config.data.location_batch.scale = (0.3, 2.0)
    config.loss.update(itc=0.0, itm=0.0, locations=1.0)
    config.optimizer.update(learning_rate=3e-5, b2=0.95, weight_decay=0.05, fresh_multiplier=10.0)
    config.loop.update(steps=_EPOCHS * epoch, checkpoint_every=epoch, evaluate_every=epoch)
    config.loop.keep_best = "AP"
    return config


def _retrieval():
    """Returns the config of retrieval, with the same precision, reading and warm-up."""
    path = pathlib.Path(__file__).with_name("coco_retrieval.py")
    return runpy.run_path(str(path))["get_config"]()
