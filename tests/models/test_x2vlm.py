"""The whole model, compared with values of the reference implementation."""

import jax
import numpy as np
import pytest

from capret_jax.checkpoints.relative_position import with_image_size
from capret_jax.config import SIZES
from capret_jax.models.x2vlm import abstract_model, bind, init_params
from tests.conftest import DATA

TOLERANCE = 2e-5


def check(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE)


@pytest.fixture(scope="module")
def outputs(golden, golden_model):
    """Every method of the model on the golden inputs, compiled once."""

    @jax.jit
    def run(image, ids, mask, region_image, region_mask):
        model = golden_model
        patches = model.vision.embed_patches(image)
        vision = model.encode_image(image)
        text = model.encode_text(ids, mask)
        fused = model.fuse(text, mask, vision)
        regions = model.pool_regions(vision[region_image], region_mask)
        rows = np.array([0, 1, 2, 0])
        return {
            "vision_embed_patches": patches,
            "vision_block0_out": model.vision.blocks[0](patches),
            "vision_embeds": vision,
            "text_embeds": text,
            "cross_embeds": fused,
            "image_feat": model.image_features(vision),
            "text_feat": model.text_features(text),
            "itm_logits_matched": model.match_logits(fused),
            "box_pred_cxcywh": model.predict_boxes(fused),
            "region_embeds": regions,
            "region_feat": model.image_features(regions),
            "region_text_cross": model.fuse(text[rows], mask[rows], regions, region_mask),
        }

    names = ("image", "text_ids", "text_mask", "region_image_index", "region_mask")
    return run(*(golden[name] for name in names))


@pytest.mark.parametrize(
    "name",
    [
        "vision_embed_patches",
        "vision_block0_out",
        "vision_embeds",
        "text_embeds",
        "cross_embeds",
        "image_feat",
        "text_feat",
        "itm_logits_matched",
        "box_pred_cxcywh",
        "region_embeds",
        "region_feat",
        "region_text_cross",
    ],
)
def test_equals_the_reference(name, outputs, golden):
    check(outputs[name], golden[name])


def test_equals_the_reference_at_96_pixels(golden_params):
    expected = np.load(DATA / "x2vlm_tiny_pretrain_at96.npz")
    params, config = with_image_size(golden_params, SIZES["tiny"], 96)
    model = bind(abstract_model(config)[0], params)
    image = jax.jit(model.encode_image)(expected["image"].transpose(0, 2, 3, 1))
    check(image, expected["vision_embeds"])


@pytest.mark.parametrize("size, millions", [("base", 254.8), ("large", 592.9)])
def test_parameter_counts_are_the_published_ones(size, millions):
    _, abstract = abstract_model(SIZES[size])
    assert sum(leaf.size for leaf in jax.tree.leaves(abstract)) / 1e6 == pytest.approx(
        millions, abs=0.05
    )


def test_initial_parameters_have_the_shapes_and_dtypes_of_the_structure():
    config = SIZES["tiny"]
    params = init_params(config, jax.random.key(0))
    _, abstract = abstract_model(config)
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), abstract)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == shapes
    # A weak type would make the jitted step compile twice.
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(params))


def test_dropout_depends_on_its_key(graphdef, golden_params, golden):
    model = bind(graphdef, golden_params)
    ids, mask = golden["text_ids"], golden["text_mask"]
    encode = jax.jit(lambda key: model.encode_text(ids, mask, key))
    one, same, other = (encode(jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 0.1
    assert np.abs(one - golden["text_embeds"]).max() > 0.1


def test_padding_does_not_change_a_text(golden_model, golden):
    ids, mask = golden["text_ids"][2:], golden["text_mask"][2:]
    length = int(mask.sum())  # 6 of 12
    encode = jax.jit(golden_model.encode_text)
    padded = encode(np.where(mask, ids, 7), mask)
    check(padded[:, :length], encode(ids[:, :length], mask[:, :length]))


def test_image_of_another_size_is_refused(golden_model):
    with pytest.raises(ValueError, match=r"takes \(B, 64, 64, 3\)"):
        golden_model.encode_image(np.zeros((1, 96, 96, 3), np.float32))
