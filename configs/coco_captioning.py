"""X2-VLM large at 384 pixels, fine-tuned to write captions of COCO's pictures.

    python -m capret_jax.main --config=configs/coco_captioning.py --workdir=runs/captions

Starts from `tools/convert_torch_ckpt.py x2vlm_large_1b.th checkpoints/large`. docs/tasks.md
describes the files and the published results. Values are X2-VLM's, unless a comment says otherwise.
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

_CAPTIONS = 566_747  # of the Karpathy training split
_BATCH, _EPOCHS = 256, 5  # the size of a batch is this project's own


def get_config():
    """Returns the config; every key can be overridden: --config.task.images=FOLDER."""
    steps = _EPOCHS * (_CAPTIONS // _BATCH)
    return to_config_dict(
        ExperimentConfig(
            batch_size=_BATCH,
            init_from="checkpoints/large",
            task=TaskConfig(
                name="captioning",
                train=("datasets/coco_train.json",),
                test="datasets/coco_val.json",
                images="datasets/coco",
                prompt="a picture of",
                beams=3,
                min_tokens=5,
                max_tokens=50,
            ),
            model=dataclasses.replace(SIZES["large"], image_size=384, attention_dropout=0.1),
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
                itc=0.0,
                itm=0.0,
                mlm=1.0,
                mlm_causal=True,
                box_l1=0.0,
                box_giou=0.0,
                arcface=0.0,
            ),
            optimizer=OptimizerConfig(
                learning_rate=5e-6,
                warmup_steps=0,
                warmup_fraction=0.1,
                rate_multipliers=(("model/vision/", 2.0),),  # 1e-5 in the vision encoder
            ),
            # The best epoch on the validation file is kept; docs/tasks.md tests it on another.
            loop=LoopConfig(
                steps=steps,
                checkpoint_every=steps // _EPOCHS,
                evaluate_every=steps // _EPOCHS,
                keep_best="CIDEr",
            ),
            evaluation=EvaluationConfig(batch_size=128),
        )
    )
