"""The objective: total and gradients against the reference, and terms without weight."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from capret_jax.checkpoints.names import reference_names
from capret_jax.config import SIZES, LossConfig, MeshConfig
from capret_jax.data.batch import Batch, Outputs
from capret_jax.distributed.mesh import make_mesh
from capret_jax.errors import InputError
from capret_jax.losses import StepContext
from capret_jax.losses.total import total_loss
from capret_jax.models.x2vlm import bind
from tests.conftest import DATA

MESH = make_mesh(MeshConfig(), jax.devices()[:1])
CONTEXT = StepContext(MESH, jax.random.key(0))
WEIGHTS = LossConfig(itc=1, itm=1, mlm=1, box_l1=1, box_giou=1, arcface=0)


@pytest.fixture(scope="module")
def total_and_gradients(golden, golden_params, graphdef):
    """The objective of our model with the reference's negatives, and its gradients."""
    image_negative, text_negative = golden["itm_image_neg"], golden["itm_text_neg"]
    mask = golden["text_mask"]
    batch = Batch(
        image=golden["image"],
        token_ids=golden["text_ids"],
        token_mask=mask,
        identity=jnp.full(3, -1),
        caption_id=jnp.arange(3),
        box=golden["box_target_cxcywh"],
        valid=np.ones(3, bool),
        masked_labels=golden["mlm_labels"],
    )

    def objective(params):
        model = bind(graphdef, params)
        image = model.encode_image(batch.image)
        text = model.encode_text(batch.token_ids, mask)
        fused = [
            model.fuse(text, mask, image),
            model.fuse(text, mask, image[image_negative]),
            model.fuse(text[text_negative], mask[text_negative], image),
        ]
        masked = model.fuse(model.encode_text(golden["mlm_ids"], mask), mask, image)
        masked = jnp.take_along_axis(masked, golden["mlm_pos"][:, :, None], axis=1)
        outputs = Outputs(
            image_features=model.image_features(image),
            text_features=model.text_features(text),
            temperature=model.temperature[...],
            match_logits=jnp.stack([model.match_logits(f) for f in fused], axis=1),
            match_valid=jnp.ones((3, 3), bool),
            boxes=model.predict_boxes(fused[0]),
            masked_lm_logits=model.masked_lm_logits(masked),
        )
        return total_loss(outputs, batch, WEIGHTS, CONTEXT, np.ones(1, int))[0]

    return jax.jit(jax.value_and_grad(objective))(golden_params)


def test_total_equals_the_reference(total_and_gradients, golden):
    assert float(total_and_gradients[0]) == pytest.approx(float(golden["loss_total"]), rel=1e-4)


_EXPECTED = json.loads((DATA / "x2vlm_tiny_pretrain_grads.json").read_text())["grad_norm"]
_NAMES = {path: reference.name for path, reference in reference_names(SIZES["tiny"]).items()}


def test_every_parameter_has_an_expected_gradient():
    assert set(_NAMES.values()) == set(_EXPECTED)


@pytest.mark.parametrize("path", _NAMES)
def test_gradient_norm_equals_the_reference(path, total_and_gradients):
    gradient = total_and_gradients[1]
    for part in path.split("/"):
        gradient = gradient[part]
    # A key's bias cancels in the softmax: its gradient is 0 but for rounding.
    assert float(jnp.linalg.norm(gradient)) == pytest.approx(
        _EXPECTED[_NAMES[path]], rel=1e-3, abs=1e-6
    )


def test_a_term_of_weight_zero_is_not_traced():
    outputs = Outputs(image_features=jnp.eye(2), class_weights=jnp.eye(2)[:, None])
    batch = Batch(*[np.zeros(2, np.int32)] * 7)
    config = LossConfig(itc=0, itm=0, box_l1=0, box_giou=0, arcface=2.0)
    value, metrics = total_loss(outputs, batch, config, CONTEXT, np.ones(2, int))
    assert {name for name in metrics if "/" in name} == {"loss/arcface", "arcface/accuracy"}
    assert float(value) == pytest.approx(2 * float(metrics["loss/arcface"][0]))


@pytest.mark.parametrize(
    "setting",
    [
        {"arcface_margin": 0.3},
        {"arcface_scale": 20.0},
        {"arcface_gradient": "straight_through"},
        {"arcface_size_margin": 0.2},
        {"arcface_sampled": 0.3},
    ],
    ids=lambda setting: next(iter(setting)),
)
def test_every_arcface_setting_reaches_the_loss(setting):
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(16, 1, 4)).astype(np.float32)
    batch = Batch(*[np.arange(2, dtype=np.int32)] * 7)

    def gradient(**settings):
        config = LossConfig(itc=0, itm=0, box_l1=0, box_giou=0, **settings)

        def loss(features):
            outputs = Outputs(image_features=features, class_weights=weights)
            return total_loss(outputs, batch, config, CONTEXT, np.arange(1, 17))[0]

        return jax.jit(jax.grad(loss))(jnp.eye(2, 4))

    assert np.abs(gradient(**setting) - gradient()).max() > 1e-3


@pytest.mark.parametrize(
    "values, key",
    [
        ({"itm": -1.0}, "loss.itm"),
        ({"itc_kind": "hinge"}, "loss.itc_kind='hinge'"),
        ({"arcface_gradient": "none"}, "loss.arcface_gradient='none' is none of textbook, straigh"),
        ({"arcface_subcentres": 0}, "loss.arcface_subcentres=0"),
        ({"arcface_scale": 0.0}, "loss.arcface_scale=0.0"),
        ({"arcface_sampled": 0.0}, "loss.arcface_sampled=0.0"),
        ({"arcface_sampled": 1.1}, "loss.arcface_sampled=1.1"),
        ({"arcface_margin": -0.1}, "loss.arcface_margin=-0.1"),
        ({"arcface_size_margin": -0.1}, "loss.arcface_size_margin=-0.1"),
        ({"arcface_margin": 3.0, "arcface_size_margin": 0.2}, "more than pi together"),
        (
            dict.fromkeys(("itc", "itm", "mlm", "box_l1", "box_giou", "arcface"), 0.0),
            "every loss weight",
        ),
    ],
)
def test_impossible_values_are_refused(values, key):
    with pytest.raises(InputError, match=key):
        LossConfig(**values)
