"""X2-VLM base at 768 pixels, fine-tuned to answer the questions of VQAv2.

    python -m capret_jax.main --config=configs/vqav2.py --workdir=runs/vqa

Starts from `tools/convert_torch_ckpt.py x2vlm_base_1b.th checkpoints/base`. docs/tasks.md describes
the files and the published results. Values are X2-VLM's, unless a comment says otherwise; those
that are not here are the same in `coco_retrieval.py`.
"""

import pathlib
import runpy

# Questions of VQAv2's train and val. With Visual Genome's, set loop.steps to 5 epochs of all.
_QUESTIONS = 658_111
_BATCH, _EPOCHS = 128, 5


def get_config():
    """Returns the config; every key can be overridden: --config.task.images=FOLDER."""
    config, epoch = _retrieval(), _QUESTIONS // _BATCH
    config.batch_size = _BATCH
    config.task.update(
        name="vqa",
        train=("datasets/vqa_train.json", "datasets/vqa_val.json"),
        test="datasets/vqa_test.json",
        images="datasets/coco",
        answers="datasets/answer_list.json",
        answers_ranked=128,
    )
    config.model.image_size, config.model.decoder_layers = 768, 6
    # Answers weighted by their shares, summed over tokens.
    config.loss.update(itc=0.0, itm=0.0, vqa=1.0, vqa_reduction="weighted_sum")
    # 2e-5 in the vision encoder, twice the rate in the decoder, fresh or not.
    config.optimizer.update(learning_rate=4e-5, fresh_multiplier=1.0)
    config.optimizer.rate_multipliers = (("model/vision/", 0.5), ("model/decoder/", 2.0))
    # The answers to VQAv2's test questions are not public: the last model is used.
    config.loop.update(steps=_EPOCHS * epoch, checkpoint_every=epoch, evaluate_every=0)
    config.loop.keep_best = ""
    return config


def _retrieval():
    """Returns the config of retrieval, with the same views, precision and warm-up."""
    path = pathlib.Path(__file__).with_name("coco_retrieval.py")
    return runpy.run_path(str(path))["get_config"]()
