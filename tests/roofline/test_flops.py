"""FLOPs of traced programs, against sums by hand and the closed form of the model's."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from capret_jax.config import (
    SIZES,
    ComputeConfig,
    DataConfig,
    ExperimentConfig,
    LocationBatchConfig,
    LossConfig,
    MeshConfig,
    RegionBatchConfig,
)
from capret_jax.data.batch import Batch, LocatedObjects
from capret_jax.distributed.mesh import make_mesh
from capret_jax.losses.memory import Memory
from capret_jax.losses.supervised_contrastive import supervised_contrastive_loss
from capret_jax.models.kernels import tpu_attention
from capret_jax.models.x2vlm import abstract_model, init_params, normalize_pixels
from capret_jax.roofline.flops import ideal_embedding_flops, ideal_step_flops, program_flops
from capret_jax.train.setup import StepSetup
from capret_jax.train.state import make_params
from capret_jax.train.step import make_loss

MODEL = dataclasses.replace(SIZES["tiny"], image_size=32)
B, T, CLASSES = 8, 10, 6


def flops(function, *arguments) -> float:
    return program_flops(jax.make_jaxpr(function)(*arguments).jaxpr)


def test_a_product_is_two_operations_per_term_and_loops_count_each_time():
    a, b = jnp.ones((3, 4)), jnp.ones((4, 5))
    assert flops(lambda a, b: a @ b, a, b) == 2 * 3 * 4 * 5

    def scanned(a):
        return jax.lax.scan(lambda x, _: (x @ a, None), a, None, length=7)[0]

    assert flops(scanned, jnp.ones((4, 4))) == 7 * 2 * 4**3


def test_devices_count_together():
    mesh = make_mesh(MeshConfig(2, 2, 2))
    spec = jax.sharding.PartitionSpec(("data", "fsdp"))
    product = jax.shard_map(lambda x: x @ x.T, mesh=mesh, in_specs=spec, out_specs=spec)
    # Each of 8 devices multiplies (2, 3) by (3, 2); pairs of them do the same.
    assert flops(product, jnp.ones((8, 3))) == 8 * 2 * 2 * 3 * 2


def test_recomputation_counts_again():
    weight = jnp.ones((4, 4))

    def loss(x, policy):
        layer = jax.checkpoint(lambda x: jnp.sin(jnp.sin(x @ weight) @ weight), policy=policy)
        return layer(x).sum()

    policies = jax.checkpoint_policies
    kept, recomputed = (
        flops(jax.grad(lambda x, policy=policy: loss(x, policy)), jnp.ones((2, 4)))
        for policy in (policies.everything_saveable, policies.nothing_saveable)
    )
    assert kept == 4 * 2 * 2 * 4 * 4 and recomputed == 6 * 2 * 2 * 4 * 4


def test_a_kernel_counts_what_it_declares():
    x = jnp.ones((2, 5, 2, 64))
    bias = jnp.ones((2, 5, 5))
    product = 2 * 2 * 2 * 5 * 5 * 64

    def attend(x):
        return tpu_attention.biased_attention(x, x, x, bias).sum()

    assert flops(attend, x) == 2 * product
    assert flops(jax.grad(attend), x) == (2 + 5) * product


@pytest.fixture(scope="module")
def batch():
    return Batch(
        image=np.zeros((B, 32, 32, 3), np.uint8),
        token_ids=np.ones((B, T), np.int32),
        token_mask=np.ones((B, T), np.int32),
        identity=np.zeros(B, np.int32),
        caption_id=np.arange(B, dtype=np.int32),
        box=np.full((B, 4), 0.5, np.float32),
        valid=np.ones(B, bool),
        question_ids=np.ones((B, T), np.int32),
        question_mask=np.ones((B, T), np.int32),
        answer_ids=np.ones((B, 10), np.int32),
        answer_mask=np.ones((B, 10), np.int32),
        objects=LocatedObjects(
            box=np.full((2 * B, 4, 4), 0.5, np.float32),
            category=np.ones((2 * B, 4), np.int32),
            image=np.zeros((2 * B, 32, 32, 3), np.uint8),
        ),
    )


@pytest.mark.parametrize(
    "loss",
    [
        LossConfig(itc=1, itm=0, box_l1=0, box_giou=0, arcface=1),
        LossConfig(itc=0, itm=0, box_l1=1, box_giou=0, arcface=0),
        LossConfig(itc=1, itm=1, mlm=1, box_l1=1, box_giou=1, arcface=1, matching_group=4),
        LossConfig(itc=0, itm=0, box_l1=0, box_giou=0, arcface=0, vqa=1),
        LossConfig(itc=0, itm=0, box_l1=0, box_giou=0, arcface=0, supcon=1),
        LossConfig(itc=0, itm=0, box_l1=0, box_giou=0, arcface=1, locations=1),
        LossConfig(
            **dict.fromkeys(("itc", "itm", "box_l1", "box_giou", "arcface"), 0),
            **{"mlm": 1, "mlm_causal": True, "mlm_insert": True, "mlm_max": 6},
        ),
    ],
)
def test_the_ideal_is_what_the_forward_pass_does(loss, batch):
    most = loss.mlm_max
    batch = dataclasses.replace(
        batch,
        masked_ids=np.ones((B, T + loss.inserted_masks), np.int32),
        masked_positions=np.zeros((B, most), np.int32),
        masked_labels=np.zeros((B, most), np.int32),
    )
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    config = ExperimentConfig(
        batch_size=B,
        model=dataclasses.replace(MODEL, decoder_layers=2 * bool(loss.vqa), location_items=4),
        data=DataConfig(max_tokens=T, location_batch=LocationBatchConfig(images=2 * B)),
        loss=loss,
    )
    params = make_params(config.model, CLASSES, jax.random.key(0))
    function = make_loss(StepSetup.create(config, mesh, np.ones(CLASSES, int)))
    traced = flops(function, params, batch, jax.random.key(0))
    ideal = ideal_step_flops(config, CLASSES) / 3
    # The two-layer heads and mining are left out of the closed form; and with ITM the negative
    # images' keys and values are projected again.
    again = 4 * 5 * MODEL.vision_width * MODEL.text_width * MODEL.fusion_layers * B
    extra = again * bool(loss.itm)
    assert ideal <= traced <= 1.03 * (ideal + extra)


def test_a_region_batch_adds_its_own_flops():
    regions = RegionBatchConfig(images=3 * B, regions_per_image=2)
    config = ExperimentConfig(
        batch_size=B, model=MODEL, data=DataConfig(max_tokens=T, region_batch=regions)
    )
    batches = config.item_batch(), config.region_batch()
    alone = [ideal_step_flops(batch, CLASSES) for batch in batches]
    assert ideal_step_flops(config, CLASSES) == sum(alone)
    assert alone[1] > 2.5 * alone[0]  # three times the pictures, and twice as many texts each


def test_the_loss_between_images_compares_with_batch_and_memory():
    def ideal(**loss) -> float:
        weights = {"itc": 0, "itm": 0, "arcface": 0} | loss
        return ideal_step_flops(
            ExperimentConfig(batch_size=B, model=MODEL, loss=LossConfig(**weights)), CLASSES
        )

    width, memory = MODEL.embed_dim, 5 * B
    batch_alone = ideal(supcon=1) - ideal()
    # Forward, and gradients of rows and of columns; the memory's columns have none.
    assert batch_alone == 3 * 2 * B * B * width
    assert ideal(supcon=1, supcon_memory=memory) - ideal() == batch_alone + 4 * B * memory * width


def test_the_loss_between_images_has_the_products_of_the_closed_form():
    mesh, memory = make_mesh(MeshConfig(), jax.devices()[:1]), Memory.empty(5 * B, 32)
    identity, valid = jnp.arange(B) // 2, jnp.ones(B, bool)

    def loss(embeddings, memory):
        return supervised_contrastive_loss(
            embeddings, identity, valid, mesh, temperature=0.2, memory=memory
        ).value

    embeddings = jnp.ones((B, 32))
    assert flops(jax.grad(loss), embeddings, None) == 3 * 2 * B * B * 32
    # JAX computes the memory's gradient, too, before it drops it.
    assert flops(jax.grad(loss), embeddings, memory) == 3 * 2 * B * (6 * B) * 32


@pytest.mark.parametrize("compute", [ComputeConfig(attention="xla"), ComputeConfig(scan=True)])
def test_embedding(compute):
    graphdef, _ = abstract_model(MODEL, compute.on("cpu"))
    params = init_params(MODEL, jax.random.key(0))

    def embed(params, image):
        from capret_jax.models.x2vlm import bind

        model = bind(graphdef, params)
        return model.image_features(model.encode_image(normalize_pixels(image)))

    traced = flops(embed, params, np.zeros((B, 32, 32, 3), np.uint8))
    assert traced == ideal_embedding_flops(MODEL, B)
