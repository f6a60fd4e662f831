"""Zero-shot evaluation on DeepFashion2 of X2-VLM base as it was pre-trained.

    python -m capret_jax.main --config=configs/df2_zeroshot.py --workdir=runs/df2_zeroshot \\
        --config.data.source_dir=/data/DeepFashion2

Starts from `tools/convert_torch_ckpt.py x2vlm_base_1b.th checkpoints/base`.
"""

import dataclasses

from capret_jax.config import (
    SIZES,
    DataConfig,
    EvaluationConfig,
    ExperimentConfig,
    ReadConfig,
    to_config_dict,
)


def get_config():
    """Returns the config; every key can be overridden: --config.init_from=checkpoints/coco."""
    return to_config_dict(
        ExperimentConfig(
            mode="evaluate",
            init_from="checkpoints/base",
            model=dataclasses.replace(SIZES["base"], image_size=384),
            data=DataConfig(
                name="deepfashion2",
                tokenizer="bert-base-uncased",
                read=ReadConfig(threads=16, prefetch=16),
            ),
            evaluation=EvaluationConfig(batch_size=256),
        )
    )
