"""Memory and time per device of the ArcFace head, on one device and split over many.

    python tools/bench_arcface.py --classes=1000000 --devices=8

Runs on CPU devices, and measures the loss and its gradients for features and weights. Both rows
have the same loss unless classes are sampled.
"""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jax.sharding import NamedSharding, PartitionSpec

from capret_jax.config import LossConfig, MeshConfig
from capret_jax.distributed.mesh import AXES, make_mesh, replicated
from capret_jax.losses import StepContext
from capret_jax.losses.arcface import ClassHead, arcface_loss

_CLASSES = flags.DEFINE_integer("classes", 1_000_000, "Number of classes; a multiple of --devices.")
_DEVICES = flags.DEFINE_integer("devices", 8, "Number of devices.")
_BATCH = flags.DEFINE_integer("batch", 64, "Number of examples.")
_WIDTH = flags.DEFINE_integer("embedding", 256, "Channels of the embeddings.")
_SAMPLED = flags.DEFINE_float("sampled", 1.0, "Share of the classes that are sampled.")


def main(argv: list[str]) -> None:
    """Prints a row for one device and one for all."""
    del argv
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", _DEVICES.value)
    print("devices  weights  gradients  working memory  (MB per device)  seconds        loss")
    for devices in (1, _DEVICES.value):
        print(_row(devices))


def _row(devices: int) -> str:
    mesh = make_mesh(MeshConfig(), jax.devices()[:devices])
    split, whole = NamedSharding(mesh, PartitionSpec(AXES)), replicated(mesh)
    sizes, key = np.broadcast_to(1, _CLASSES.value), jax.random.key(0)

    def loss(weights, features, labels):
        config = LossConfig(arcface_sampled=float(_SAMPLED.value))
        head, context = ClassHead(weights, sizes), StepContext(mesh, key)
        return arcface_loss(features, head, labels, context, config).value

    shape = (_CLASSES.value, 1, _WIDTH.value)
    weights = jax.jit(lambda: 0.02 * jax.random.normal(key, shape), out_shardings=split)()
    features = jax.random.normal(key, (_BATCH.value, _WIDTH.value))
    features /= jnp.linalg.norm(features, axis=1, keepdims=True)
    labels = jax.random.randint(key, (int(_BATCH.value),), 0, _CLASSES.value)
    function = jax.jit(
        jax.value_and_grad(loss, (0, 1)),
        in_shardings=(split, whole, whole),
        out_shardings=(whole, (split, whole)),
    )
    arguments = weights, *jax.device_put((features, labels), whole)
    compiled = function.lower(*arguments).compile()
    start = time.perf_counter()
    value, _ = jax.block_until_ready(compiled(*arguments))
    seconds = time.perf_counter() - start
    memory: Any = compiled.memory_analysis()
    sizes_mb = (
        memory.argument_size_in_bytes / 1e6,
        memory.output_size_in_bytes / 1e6,
        memory.temp_size_in_bytes / 1e6,
    )
    return "{:7}{:9.1f}{:11.1f}{:16.1f}{:26.2f}{:12.6f}".format(
        devices, *sizes_mb, seconds, float(value)
    )


if __name__ == "__main__":
    app.run(main)
