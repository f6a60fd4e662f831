"""X2-VLM large at 384 pixels, fine-tuned to find objects by phrases on RefCOCO+.

    python -m capret_jax.main --config=configs/refcoco_plus.py --workdir=runs/refcoco

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

_PHRASES = 120_191  # of REFER's split "train"
_BATCH, _EPOCHS = 160, 10  # 20 pictures on each of 8 GPUs, as X-VLM


def get_config():
    """Returns the config; every key can be overridden: --config.task.images=FOLDER."""
    steps = _EPOCHS * (_PHRASES // _BATCH)
    return to_config_dict(
        ExperimentConfig(
            batch_size=_BATCH,
            init_from="checkpoints/large",
            task=TaskConfig(
                name="grounding",
                train=("datasets/refcoco+_train.json",),
                test="datasets/refcoco+_val.json",
                images="datasets/coco",
                refs="datasets/refcoco+/refs(unc).p",
                instances="datasets/refcoco+/instances.json",
            ),
            # Stochastic depth in place of dropout on hidden states.
            model=dataclasses.replace(
                SIZES["large"],
                image_size=384,
                dropout=0.0,
                attention_dropout=0.1,
                text_drop_path=0.1,
            ),
            compute=ComputeConfig(dtype="bfloat16", remat="vision", scan=True),
            data=DataConfig(
                tokenizer="bert-base-uncased",
                max_tokens=40,
                augment=AugmentConfig(
                    # Windows that contain the box, flipped with it, and RandAugment(2, 7) of
                    # operations that move no pixels.
                    region_crop=True,
                    randaugment=2,
                    brightness=0.0,
                    colour=0.0,
                    erase=0.0,
                ),
                read=ReadConfig(threads=16, prefetch=16),
            ),
            loss=LossConfig(itc=0.0, itm=0.0, box_l1=1.0, box_giou=1.0, arcface=0.0),
            optimizer=OptimizerConfig(
                learning_rate=1e-5,
                warmup_steps=0,
                warmup_fraction=0.1,
            ),
            # The best epoch on val is kept; docs/tasks.md has the command for testA and testB.
            loop=LoopConfig(
                steps=steps,
                checkpoint_every=steps // _EPOCHS,
                evaluate_every=steps // _EPOCHS,
                keep_best="accuracy",
            ),
            evaluation=EvaluationConfig(batch_size=128),
        )
    )
