"""Models from folders: converted and trained, at any image size."""

import dataclasses
from unittest import mock

import grain
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
import pytest

import capret_jax
from capret_jax.checkpoints.conversion import from_reference
from capret_jax.checkpoints.converted import ModelCard, save_converted
from capret_jax.checkpoints.loading import ModelFolder, load_model
from capret_jax.checkpoints.state_dict import read_state_dict
from capret_jax.checkpoints.training import Checkpoints
from capret_jax.config import (
    CaptionConfig,
    Cleaning,
    DataConfig,
    DetectionConfig,
    EvaluationConfig,
    ExperimentConfig,
    LossConfig,
)
from capret_jax.data.tokenizer import build_vocabulary
from capret_jax.errors import InputError
from capret_jax.models.beam_search import BeamConfig
from capret_jax.models.caption_generation import SpecialTokens
from capret_jax.models.x2vlm import X2VLM, init_params
from capret_jax.serve.encoder import Encoder
from capret_jax.train.state import TrainState
from tests.conftest import DATA
from tests.small_model import SMALL_MODEL


@pytest.fixture(scope="session")
def converted_dirs(tmp_path_factory):
    """Folders as convert_torch_ckpt.py writes them, by kind."""
    root = tmp_path_factory.mktemp("converted")
    for kind in ("pretrain", "vqa", "caption"):
        state = read_state_dict(DATA / f"x2vlm_tiny_{kind}.th")
        save_converted(root / kind, from_reference(state))
    return root


@pytest.fixture(scope="module")
def model(converted_dirs):
    return capret_jax.load_model(converted_dirs / "pretrain")


def check(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-5)


def test_the_whole_interface_equals_the_reference(model, golden):
    mask = golden["text_mask"]
    image = model.encode_image(golden["image"])
    check(image, golden["vision_embeds"])
    regions = model.pool_regions(image[golden["region_image_index"]], golden["region_mask"])
    check(regions, golden["region_embeds"])
    text = model.encode_text(golden["text_ids"], mask)
    check(text, golden["text_embeds"])
    fused = model.fuse(text, mask, image)
    check(fused, golden["cross_embeds"])
    rows = np.array([0, 1, 2, 0])
    masked = model.fuse(text[rows], mask[rows], regions, golden["region_mask"])
    check(masked, golden["region_text_cross"])
    check(model.image_features(image), golden["image_feat"])
    check(model.text_features(text), golden["text_feat"])
    check(model.match_logits(fused), golden["itm_logits_matched"])
    check(model.predict_boxes(fused), golden["box_pred_cxcywh"])
    assert model.masked_lm_logits(fused).shape == (*mask.shape, 120)


def test_bfloat16_is_close_and_its_results_are_float32(converted_dirs, golden):
    model = capret_jax.load_model(converted_dirs / "pretrain", precision="bfloat16")
    image = model.encode_image(golden["image"])
    text = model.encode_text(golden["text_ids"], golden["text_mask"])
    fused = model.fuse(text, golden["text_mask"], image)
    found = model.image_features(image), model.text_features(text), model.predict_boxes(fused)
    names = ("image_feat", "text_feat", "box_pred_cxcywh")
    for actual, expected in zip(found, map(golden.get, names), strict=True):
        assert actual.dtype == np.float32
        error = np.abs(actual - expected).max() / np.abs(expected).max()
        assert 1e-5 < error < 0.05


def test_an_unknown_precision_is_refused(converted_dirs):
    with pytest.raises(InputError, match="precision='half' is none of float32, bfloat16"):
        capret_jax.load_model(converted_dirs / "pretrain", precision="half")


@pytest.mark.parametrize("image_size", [None, 96, 32])
def test_any_image_size_is_accepted(converted_dirs, image_size):
    expected = np.load(DATA / "x2vlm_tiny_pretrain_at96.npz")
    model = load_model(converted_dirs / "pretrain", image_size)
    assert model.config.image_size == (image_size or 64)
    check(model.encode_image(expected["image"].transpose(0, 2, 3, 1)), expected["vision_embeds"])


@pytest.mark.parametrize("shape", [(1, 40, 40, 3), (1, 64, 32, 3), (64, 64, 3), (1, 64, 64, 1)])
def test_impossible_images_are_refused(model, shape):
    with pytest.raises(InputError, match="40|must be"):
        model.encode_image(np.zeros(shape, np.float32))


def test_each_shape_is_compiled_once(model, golden, monkeypatch):
    traces = []
    original = X2VLM.text_features
    counted = lambda self, text: (traces.append(text.shape), original(self, text))[1]  # noqa: E731
    monkeypatch.setattr(X2VLM, "text_features", counted)
    text = golden["text_embeds"]
    for batch in (3, 3, 2, 3, 2):
        model.text_features(text[:batch])
    assert traces == [(3, 12, 48), (2, 12, 48)]


def test_texts_can_share_an_image(model, golden):
    image = model.encode_image(golden["image"][:1])
    text = model.encode_text(golden["text_ids"], golden["text_mask"])
    together = model.fuse(text, golden["text_mask"], image)
    repeated = model.fuse(text, golden["text_mask"], np.repeat(image, 3, axis=0))
    np.testing.assert_allclose(together, repeated, rtol=0, atol=1e-5)


@pytest.mark.parametrize("texts, images", [(1, 3), (2, 3)])
def test_texts_that_cannot_share_images_evenly_are_refused(model, golden, texts, images):
    image = model.encode_image(golden["image"][:images])
    text, mask = golden["text_embeds"][:texts], golden["text_mask"][:texts]
    with pytest.raises(InputError, match=f"{texts} texts cannot share {images} images"):
        model.fuse(text, mask, image)


def test_raw_pixels_are_refused(model):
    with pytest.raises(InputError, match=r"uint8 .*normalize_pixels"):
        model.encode_image(np.zeros((1, 64, 64, 3), np.uint8))


def test_a_part_that_the_file_lacks_is_not_used(converted_dirs):
    model = load_model(converted_dirs / "vqa")
    image = model.encode_image(np.zeros((1, 64, 64, 3), np.float32))
    with pytest.raises(InputError, match="held no vision_proj"):
        model.image_features(image)
    with pytest.raises(InputError, match="held no mlm_head"):
        model.write_captions(image, np.array([2]), SpecialTokens(4, 3))


def test_models_without_the_part_do_not_write_locations(model):
    with pytest.raises(InputError, match="does not write locations: train it with"):
        model.write_locations(np.zeros((1, 17, 64), np.float32))


def test_a_trained_model_writes_locations(trained_dir):
    model = load_model(trained_dir)
    image = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    written = model.write_locations(model.encode_image(image))
    items, classes = model.config.location_items, model.config.location_classes
    assert written.boxes.shape == (2, items, 4)
    assert written.probabilities.shape == (2, items, classes)
    assert (written.probabilities.sum(axis=-1) <= 1 + 1e-5).all()


def test_questions_are_answered(converted_dirs, model):
    vqa = np.load(DATA / "x2vlm_tiny_vqa.npz")
    answerer = load_model(converted_dirs / "vqa")
    image = answerer.encode_image(vqa["image"].transpose(0, 2, 3, 1))
    text = answerer.encode_text(vqa["question_ids"], vqa["question_mask"])
    question = answerer.fuse(text, vqa["question_mask"], image)
    arguments = vqa["answer_ids"], vqa["answer_mask"], question, vqa["question_mask"], 5
    rows, _ = answerer.rank_answers(*arguments)
    np.testing.assert_array_equal(rows, vqa["top_ids"])
    with pytest.raises(InputError, match="no answer decoder"):
        model.rank_answers(*arguments)
    with pytest.raises(InputError, match="k=9 must be between 1 and the 8 answers"):
        answerer.rank_answers(*arguments[:-1], 9)


def test_captions_are_written(converted_dirs):
    caption = np.load(DATA / "x2vlm_tiny_caption.npz")
    model = load_model(converted_dirs / "caption")
    image = model.encode_image(caption["image"].transpose(0, 2, 3, 1))
    config = BeamConfig(beams=3, min_tokens=3, max_tokens=8)
    texts, _ = model.write_captions(image, caption["prompt_ids"], SpecialTokens(4, 3), config)
    np.testing.assert_array_equal(texts, caption["beams3"][:, :8])


def test_folders_without_a_model_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"neither a converted checkpoint .* nor the workdir"):
        load_model(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(InputError, match="no complete checkpoint yet"):
        load_model(tmp_path)


@pytest.mark.parametrize("image_size", [None, 96])
def test_parameters_are_on_the_device(converted_dirs, image_size):
    model = load_model(converted_dirs / "pretrain", image_size)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(model.params))
    assert dataclasses.asdict(model.config)["vision_width"] == 64


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A training workdir with one checkpoint, of a model without trained matching head."""
    folder = tmp_path_factory.mktemp("workdir")
    build_vocabulary(["a red dress"], folder / "vocab.txt", SMALL_MODEL.vocab_size)
    config = ExperimentConfig(
        model=SMALL_MODEL,
        data=DataConfig(
            max_tokens=12, cleaning="none", max_words=9, captions=CaptionConfig(prompt="a red")
        ),
        loss=LossConfig(mlm=0.1, mlm_causal=True),
        evaluation=EvaluationConfig(detection=DetectionConfig(refinements=1, windows=(1.0, 0.5))),
    )
    params = {"model": init_params(SMALL_MODEL, jax.random.key(0))}
    state = TrainState(jnp.int32(1), params, ())
    metadata = {"config": dataclasses.asdict(config), "untrained": ["itm_head/up/kernel"]}
    checkpoints = Checkpoints(folder)
    iterator = iter(grain.MapDataset.range(3).to_iter_dataset())
    checkpoints.save(1, state, iterator, metadata)
    checkpoints.close()
    return folder


def test_a_workdir_is_opened_with_its_settings(workdir):
    folder = ModelFolder(workdir)
    untrained = ["itm_head/up/kernel"]
    assert folder.card == ModelCard(SMALL_MODEL, "pretrain", untrained, prompt="a red")
    assert folder.writes_captions
    setup = folder.setup()
    assert (setup.tokenizer, setup.max_tokens) == (str(workdir / "vocab.txt"), 12)
    assert setup.cleaning == Cleaning("none", 9)
    assert folder.detection == DetectionConfig(refinements=1, windows=(1.0, 0.5))
    assert folder.setup("bert-base-uncased").tokenizer == "bert-base-uncased"
    expected = init_params(SMALL_MODEL, jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, folder.load_params(), expected)


def test_a_workdir_of_an_earlier_version_keeps_its_cleaning_and_has_no_prompt(workdir):
    folder = ModelFolder(workdir)
    data = folder._run_config["data"]
    del data["cleaning"], data["max_words"], data["captions"]["prompt"]
    folder._run_config["evaluation"]["detection"] = {"refinements": 1, "phrases_of_old": 3}
    with mock.patch.object(Checkpoints, "metadata", return_value={"config": folder._run_config}):
        earlier = ModelFolder(workdir)
    assert earlier.card.prompt == ""
    assert earlier.setup().cleaning == Cleaning("earlier", 40)
    assert earlier.detection == DetectionConfig(refinements=1)


def test_a_converted_checkpoint_is_opened_with_its_settings(converted_dirs):
    folder = ModelFolder(converted_dirs / "caption")
    assert folder.card.kind == "caption_mlm" and folder.writes_captions
    assert not ModelFolder(converted_dirs / "pretrain").writes_captions
    setup = folder.setup()
    assert (setup.tokenizer, setup.max_tokens, setup.data) == ("bert-base-uncased", 40, None)
    assert setup.cleaning == Cleaning("x2vlm", 30)
    assert folder.detection == DetectionConfig()


def test_an_encoder_opens_its_workdir_once(workdir):
    checkpointer = ocp.training.Checkpointer
    with (
        mock.patch.object(ocp.training, "Checkpointer", side_effect=checkpointer) as opened,
        pytest.warns(UserWarning, match="never trained itm_head"),
    ):
        Encoder.from_dir(workdir)
    assert opened.call_count == 1
    assert opened.call_args.kwargs["cleanup_tmp_directories"] is False
