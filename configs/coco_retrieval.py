"""X2-VLM base at 384 pixels, fine-tuned for image-text retrieval on COCO or Flickr30k.

    python -m capret_jax.main --config=configs/coco_retrieval.py --workdir=runs/coco
    python -m capret_jax.main --config=configs/coco_retrieval.py:flickr30k --workdir=runs/flickr

Starts from `tools/convert_torch_ckpt.py x2vlm_base_1b.th checkpoints/base`. docs/tasks.md describes
the files and the published results. X2-VLM published no config of this task: values are X-VLM's
(arXiv 2111.08276), whose recipe its paper follows, unless a comment says otherwise.
"""

import dataclasses

from capret_jax.config import (
    SIZES,
    AugmentConfig,
    ComputeConfig,
    DataConfig,
    EvaluationConfig,
    ExperimentConfig,
    LoopConfig,
    LossConfig,
    OptimizerConfig,
    ReadConfig,
    TaskConfig,
    to_config_dict,
)
from capret_jax.errors import InputError

# Dataset -> captions of the Karpathy training split, and candidates that are re-ranked.
_DATASETS = {"coco": (566_747, 256), "flickr30k": (145_000, 128)}
_BATCH, _EPOCHS = 160, 10  # 20 pictures on each of 8 GPUs


def get_config(dataset: str = "coco"):
    """Returns the config; every key can be overridden: --config.task.images=FOLDER.

    Args:
        dataset: "coco" or "flickr30k".

    Raises:
        InputError: there is no such dataset.
    """
    if dataset not in _DATASETS:
        raise InputError(
            f"configs/coco_retrieval.py:{dataset} does not exist; there are coco and flickr30k."
        )
    captions, top_k = _DATASETS[dataset]
    steps = _EPOCHS * (captions // _BATCH)
    return to_config_dict(
        ExperimentConfig(
            batch_size=_BATCH,
            init_from="checkpoints/base",
            task=TaskConfig(
                name="retrieval",
                train=(f"datasets/{dataset}_train.json",),
                test=f"datasets/{dataset}_val.json",
                images=f"datasets/{dataset}",
                top_k=top_k,
            ),
            # Attention probabilities have dropout in the reference's BERT.
            model=dataclasses.replace(SIZES["base"], image_size=384, attention_dropout=0.1),
            compute=ComputeConfig(dtype="bfloat16", remat="vision", scan=True),
            data=DataConfig(
                tokenizer="bert-base-uncased",
                max_tokens=40,
                augment=AugmentConfig(
                    # RandomResizedCrop of half the area or more, and RandAugment(2, 7).
                    crop_area=0.5,
                    randaugment=2,
                    margin=0.0,
                    shrink=0.0,
                    trim=0.0,
                    brightness=0.0,
                    colour=0.0,
                    erase=0.0,
                ),
                read=ReadConfig(threads=16, prefetch=16),
            ),
            loss=LossConfig(
                itc=1.0,
                itm=1.0,
                box_l1=0.0,
                box_giou=0.0,
                arcface=0.0,
                # Hard negatives from all pictures of a device.
                matching_group=0,
            ),
            optimizer=OptimizerConfig(
                learning_rate=3e-5,
                warmup_steps=0,
                warmup_fraction=0.1,
                # Of parameters that the checkpoint lacks: none, with a pretrain checkpoint.
                fresh_multiplier=2.0,
            ),
            # The best epoch on the validation file is kept; docs/tasks.md tests it on another.
            loop=LoopConfig(
                steps=steps,
                checkpoint_every=steps // _EPOCHS,
                evaluate_every=steps // _EPOCHS,
                keep_best="r_mean",
            ),
            evaluation=EvaluationConfig(batch_size=128),
        )
    )
