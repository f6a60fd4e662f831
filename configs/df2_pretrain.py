"""X2-VLM base, pre-trained further on DeepFashion2's photographs: MLM, ITC, ITM and boxes.

    python -m capret_jax.main --config=configs/df2_pretrain.py --workdir=runs/df2_pretrain \\
        --config.data.source_dir=/data/DeepFashion2

Starts from `tools/convert_torch_ckpt.py x2vlm_base_1b.th checkpoints/base`, or BEiT-v2 and BERT
(docs/checkpoints.md); `df2_finetune.py` then starts with --config.init_from=runs/df2_pretrain.
"""

import dataclasses

from capret_jax.config import (
    SIZES,
    AugmentConfig,
    ComputeConfig,
    DataConfig,
    ExperimentConfig,
    LoopConfig,
    LossConfig,
    OptimizerConfig,
    ReadConfig,
    to_config_dict,
)


def get_config():
    """Returns the config; every key can be overridden: --config.loss.mlm=0.5."""
    return to_config_dict(
        ExperimentConfig(
            batch_size=256,
            init_from="checkpoints/base",
            model=dataclasses.replace(SIZES["base"], attention_dropout=0.1),
            compute=ComputeConfig(dtype="bfloat16", remat="vision", scan=True),
            data=DataConfig(
                name="deepfashion2",
                tokenizer="bert-base-uncased",
                max_tokens=32,
                views_per_identity=2,
                augment=AugmentConfig(
                    # As X2-VLM.
                    randaugment=2,
                    # Boxes are learnt from these views alone. configs/x2vlm_pretrain.py has
                    # X2-VLM's region batch in their place.
                    wide=0.33,
                ),
                read=ReadConfig(threads=16, prefetch=16),
            ),
            # Identities are for fine-tuning: they train neither language nor boxes.
            loss=LossConfig(
                itc=1.0,
                itm=1.0,
                mlm=1.0,
                box_l1=1.0,
                box_giou=1.0,
                arcface=0.0,
                matching_group=0,
            ),
            optimizer=OptimizerConfig(learning_rate=1e-4, warmup_steps=2500, clip_norm=1.0),
            loop=LoopConfig(steps=50_000, checkpoint_every=2500),
        )
    )
