"""X2-VLM large at 384 pixels, fine-tuned to judge sentences about two pictures on NLVR2.

    python -m capret_jax.main --config=configs/nlvr2.py --workdir=runs/nlvr2

Starts from `tools/convert_torch_ckpt.py x2vlm_large_1b.th checkpoints/large`. docs/tasks.md
describes the files and the published results. X2-VLM published no config of this task: values are
those of retrieval, unless a comment says otherwise.
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

_SENTENCES = 86_373  # of the training split
_BATCH, _EPOCHS = 80, 10  # 160 pictures


def get_config():
    """Returns the config; every key can be overridden: --config.task.images=FOLDER."""
    steps = _EPOCHS * (_SENTENCES // _BATCH)
    return to_config_dict(
        ExperimentConfig(
            batch_size=_BATCH,
            init_from="checkpoints/large",
            task=TaskConfig(
                name="nlvr2",
                train=("datasets/nlvr_train.json",),
                test="datasets/nlvr_dev.json",
                images="datasets/nlvr2",
            ),
            model=dataclasses.replace(
                SIZES["large"], image_size=384, attention_dropout=0.1, nlvr=True
            ),
            compute=ComputeConfig(dtype="bfloat16", remat="vision", scan=True),
            data=DataConfig(
                tokenizer="bert-base-uncased",
                max_tokens=40,
                augment=AugmentConfig(
                    # As for retrieval. Pairs are not flipped where the sentence mentions left or
                    # right.
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
            loss=LossConfig(itc=0.0, itm=0.0, box_l1=0.0, box_giou=0.0, arcface=0.0, nlvr=1.0),
            optimizer=OptimizerConfig(
                learning_rate=3e-5,
                warmup_steps=0,
                warmup_fraction=0.1,
                # Of parameters that the checkpoint lacks: the head.
                fresh_multiplier=2.0,
            ),
            # The best epoch on dev is kept; docs/tasks.md has the command for test-P.
            loop=LoopConfig(
                steps=steps,
                checkpoint_every=steps // _EPOCHS,
                evaluate_every=steps // _EPOCHS,
                keep_best="accuracy",
            ),
            evaluation=EvaluationConfig(batch_size=64),
        )
    )
