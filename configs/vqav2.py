"""X2-VLM base at 768 pixels, fine-tuned to answer the questions of VQAv2.

    python -m capret_jax.main --config=configs/vqav2.py --workdir=runs/vqa

Starts from `tools/convert_torch_ckpt.py x2vlm_base_1b.th checkpoints/base`. docs/tasks.md describes
the files and the published results. Values are X2-VLM's, unless a comment says otherwise.
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

# Questions of VQAv2's train and val. With Visual Genome's, set loop.steps to 5 epochs of all.
_QUESTIONS = 658_111
_BATCH, _EPOCHS = 128, 5


def get_config():
    """Returns the config; every key can be overridden: --config.task.images=FOLDER."""
    steps = _EPOCHS * (_QUESTIONS // _BATCH)
    return to_config_dict(
        ExperimentConfig(
            batch_size=_BATCH,
            init_from="checkpoints/base",
            task=TaskConfig(
                name="vqa",
                train=("datasets/vqa_train.json", "datasets/vqa_val.json"),
                test="datasets/vqa_test.json",
                images="datasets/coco",
                answers="datasets/answer_list.json",
                answers_ranked=128,
            ),
            model=dataclasses.replace(
                SIZES["base"], image_size=768, decoder_layers=6, attention_dropout=0.1
            ),
            compute=ComputeConfig(dtype="bfloat16", remat="vision", scan=True),
            data=DataConfig(
                tokenizer="bert-base-uncased",
                max_tokens=40,
                augment=AugmentConfig(
                    # RandomResizedCrop of half the area or more, and RandAugment(2, 7); flips, but
                    # where a question or an answer mentions left or right.
                    crop_area=0.5,
                    randaugment=2,
                    margin=0.0,
                    shrink=0.0,
                    trim=0.0,
                    brightness=0.0,
                    colour=0.0,
                    erase=0.0,
                ),
                # As the checkpoints were trained: Pillow's bicubic filter.
                read=ReadConfig(threads=16, prefetch=16, resize="pillow"),
            ),
            loss=LossConfig(
                itc=0.0,
                itm=0.0,
                vqa=1.0,
                # Answers weighted by their shares, summed over tokens.
                vqa_reduction="weighted_sum",
                box_l1=0.0,
                box_giou=0.0,
                arcface=0.0,
            ),
            optimizer=OptimizerConfig(
                learning_rate=4e-5,
                warmup_steps=0,
                warmup_fraction=0.1,
                # 2e-5 in the vision encoder, twice the rate in the decoder.
                rate_multipliers=(("model/vision/", 0.5), ("model/decoder/", 2.0)),
            ),
            # The answers to VQAv2's test questions are not public: the last model is used.
            loop=LoopConfig(steps=steps, checkpoint_every=steps // _EPOCHS),
            evaluation=EvaluationConfig(batch_size=128),
        )
    )
