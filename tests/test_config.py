"""Configs: shipped files build; unknown keys, wrong types and impossible values are refused."""

import dataclasses
import importlib.util
import pathlib

import pytest

from capret_jax.config import (
    ExperimentConfig,
    LoopConfig,
    check_same_training,
    from_config_dict,
    to_config_dict,
)
from capret_jax.config.captions import ALL_FIELDS, FIELDS
from capret_jax.config.data import VARIANTS
from capret_jax.config.loss import ARCFACE_GRADIENTS
from capret_jax.data.schema import DETAILS, LEVELS
from capret_jax.errors import InputError
from capret_jax.losses.margin import GRADIENTS
from capret_jax.synthetic.builder import SyntheticFashion

CONFIGS = sorted((pathlib.Path(__file__).parent.parent / "configs").glob("*.py"))
# The ablation's config describes many runs: tests/ablation.
CONFIGS = [path for path in CONFIGS if path.stem != "ablation"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_are_valid(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = from_config_dict(module.get_config())
    assert from_config_dict(to_config_dict(config)) == config


def changed(key: str, value):
    values = to_config_dict(ExperimentConfig()).unlock()
    with values.ignore_type():
        node = values
        *parents, name = key.split(".")
        for parent in parents:
            node = node[parent]
        node[name] = value
    return values


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("batch_sise", 8, r"config\.batch_sise does not exist; did you mean batch_size"),
        ("optimizer.lr", 1.0, r"config\.optimizer\.lr does not exist"),
        ("batch_size", "many", r"config\.batch_size='many' must be of type int"),
        ("batch_size", True, r"config\.batch_size=True must be of type int"),
        ("loss", 3, r"config\.loss=3 must be a group"),
        ("mode", "dream", r"config\.mode='dream' is none of train_and_evaluate"),
        ("batch_size", 0, "must be positive"),
        ("model.image_size", 100, r"image_size=100 is not a positive multiple of 16"),
        ("model.text_heads", 7, r"text_width=768 is not divisible by model\.text_heads=7"),
        ("loss.itc", -1.0, r"loss\.itc=-1\.0 is negative"),
        ("optimizer.decay", "magic", r"optimizer\.decay='magic'"),
        ("optimizer.rate_multipliers", (("(", 1.0),), "rate_multipliers"),
        ("loop.steps", 0, r"loop\.steps=0 must be at least 1"),
        ("data.name", "imagenet", r"data\.name='imagenet' is none of synthetic"),
        ("data.variant", "huge", r"data\.variant='huge'"),
        ("embedding.kind", "smell", "embedding.kind='smell' is none of image, text"),
        ("embedding.kind", "text", "embedding.kind='text' without captions says the same"),
        ("embedding.captions", "oracle", "embedding.kind='image' reads no captions"),
        ("embedding.captions", "heard", "embedding.captions='heard' is none of none, oracle"),
        ("embedding.captions", "generated", "needs the captions: set embedding.file"),
        ("embedding.file", "captions.jsonl", "is not read: set embedding.captions"),
        ("loss.vqa", 1.0, "trains the answer decoder, which the model lacks"),
        ("data.cleaning", "soap", r"data\.cleaning='soap' is none of x2vlm, earlier, none"),
        ("data.max_words", 0, r"data\.max_words=0 leaves no word"),
        ("data.captions.prompt", "a photo of", "prompt='a photo of' is what a captioner starts"),
        ("loss.mlm_probability", 0.0, r"loss\.mlm_probability=0\.0 is not in \(0, 1\]"),
        ("loss.mlm_max", 0, r"loss\.mlm_max=0 is less than 1"),
        ("loss.mlm_spans", "letters", r"mlm_spans='letters' is neither 'words' nor 'x2vlm'"),
        ("loss.mlm_insert", True, r"loss\.mlm_insert trains a captioner: set loss\.mlm_causal"),
        ("loss.mlm_smoothing", 1.0, r"loss\.mlm_smoothing=1\.0 is not in \[0, 1\)"),
        ("data.max_tokens", 600, r"max_tokens=600 is more than config\.model\.max_positions=512"),
    ],
)
def test_errors_name_the_key(key, value, message):
    with pytest.raises(InputError, match=message):
        from_config_dict(changed(key, value))


def test_integers_are_accepted_as_floats():
    assert from_config_dict(changed("optimizer.learning_rate", 1)).optimizer.learning_rate == 1.0


def test_a_checkpoint_of_another_config_is_refused_by_key():
    saved = dataclasses.asdict(ExperimentConfig())
    same = dataclasses.asdict(from_config_dict(changed("loop.log_every", 7)))
    check_same_training(saved, same, "runs/x")
    older = {name: value for name, value in saved.items() if name != "init_from"}
    check_same_training(older, same, "runs/x")
    other = dataclasses.asdict(from_config_dict(changed("loss.arcface_margin", 0.3)))
    with pytest.raises(InputError, match=r"config\.loss\.arcface_margin was 0\.15 and is 0\.3"):
        check_same_training(saved, other, "runs/x")


def test_a_run_keeps_its_resizing():
    saved = dataclasses.asdict(ExperimentConfig())
    pillow = dataclasses.asdict(from_config_dict(changed("data.read.resize", "pillow")))
    del saved["data"]["read"]["resize"]  # of an older version
    check_same_training(saved, dataclasses.asdict(ExperimentConfig()), "runs/x")
    threads = dataclasses.asdict(from_config_dict(changed("data.read.threads", 7)))
    check_same_training(saved, threads, "runs/x")
    with pytest.raises(InputError, match=r"config\.data\.read\.resize was 'fast' and is 'pillow'"):
        check_same_training(saved, pillow, "runs/x")


def test_a_run_of_a_version_without_cleaning_goes_on_only_as_it_began():
    saved = dataclasses.asdict(ExperimentConfig())
    del saved["data"]["cleaning"], saved["data"]["max_words"]
    now = dataclasses.asdict(ExperimentConfig())
    with pytest.raises(InputError, match=r"config\.data\.cleaning was 'earlier' and is 'x2vlm'"):
        check_same_training(saved, now, "runs/x")
    now["data"]["cleaning"] = "earlier"
    with pytest.raises(InputError, match=r"config\.data\.max_words was 40 and is 30"):
        check_same_training(saved, now, "runs/x")
    now["data"]["max_words"] = 40
    check_same_training(saved, now, "runs/x")


def test_evaluations_that_choose_the_model_may_not_change():
    def config(**loop):
        return dataclasses.asdict(ExperimentConfig(loop=LoopConfig(**loop)))

    check_same_training(config(evaluate_every=10), config(evaluate_every=5), "runs/x")
    best = {"evaluate_every": 10, "keep_best": "mAP"}
    check_same_training(config(**best), config(**best), "runs/x")
    with pytest.raises(InputError, match=r"config\.loop\.evaluate_every was 10 and is 5"):
        check_same_training(config(**best), config(**best | {"evaluate_every": 5}), "runs/x")
    with pytest.raises(InputError, match=r"config\.loop\.keep_best was '' and is 'mAP'"):
        check_same_training(config(evaluate_every=10), config(**best), "runs/x")


def test_every_key_can_be_overridden():
    def check(values):
        for name, value in values.items():
            assert not hasattr(dict, name), f"{name} is shadowed by a method of ConfigDict"
            if isinstance(value, dict):
                check(value)

    check(dataclasses.asdict(ExperimentConfig()))


def test_variants_are_those_of_the_synthetic_builder():
    assert tuple(config.name for config in SyntheticFashion.BUILDER_CONFIGS) == VARIANTS


def test_caption_fields_are_those_of_the_schema():
    assert ("category", *LEVELS) == FIELDS
    assert ("category", *LEVELS, *DETAILS) == ALL_FIELDS


def test_arcface_gradients_are_those_of_the_loss():
    assert tuple(GRADIENTS) == ARCFACE_GRADIENTS
