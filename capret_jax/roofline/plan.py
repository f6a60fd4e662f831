"""Memory, FLOPs and traffic of a config's programs on devices that are not here.

XLA compiles for a topology without the hardware. The bound is the time that the slowest of matrix
units, HBM and links allows (the roofline): neither latency nor imperfect kernels are in it.
"""

import dataclasses
import re
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

from capret_jax.config import ExperimentConfig
from capret_jax.data.pipeline import abstract_batch
from capret_jax.distributed.mesh import batch_parts, batch_sharding
from capret_jax.errors import InputError
from capret_jax.models.x2vlm import abstract_model
from capret_jax.retrieval.embedding import Embedder, PictureBatch
from capret_jax.roofline.compiled import measure_traffic
from capret_jax.roofline.flops import ideal_embedding_flops, ideal_step_flops, program_flops
from capret_jax.train.setup import StepSetup
from capret_jax.train.state import abstract_state
from capret_jax.train.step import make_step


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published figures of one chip (Google Cloud's TPU system architecture pages).

    Attributes:
        hbm: bytes.
        flops: bfloat16 peak, per second.
        hbm_bandwidth: bytes per second.
        link_bandwidth: bytes per second to all other chips together.
    """

    hbm: float
    flops: float
    hbm_bandwidth: float
    link_bandwidth: float


CHIPS = {
    "TPU v4": Chip(32 * 2**30, 275e12, 1228e9, 300e9),
    "TPU v5 lite": Chip(16 * 2**30, 197e12, 819e9, 200e9),
    "TPU v5": Chip(95 * 2**30, 459e12, 2765e9, 600e9),
    "TPU v6 lite": Chip(32 * 2**30, 918e12, 1640e9, 448e9),
}

# XLA keeps some HBM for itself.
_USABLE = 15.75 / 16


class Program(NamedTuple):
    """A jitted function to plan.

    Attributes:
        function: the one that a run would call.
        arguments: its abstract arguments.
        ideal_flops: matrix-product FLOPs of its mathematics, of all devices together.
        images: pictures that one call computes.
    """

    function: Any
    arguments: tuple
    ideal_flops: float
    images: int


def topology_devices(topology: str) -> list[jax.Device]:
    """Devices of a TPU slice by its name, "v5e:4x4" for instance.

    Raises:
        InputError: there is no such topology, or libtpu is not installed.
    """
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    except Exception as error:  # libtpu raises RuntimeErrors of several kinds
        raise InputError(
            f"--topology={topology} cannot be compiled for: expected a name such as v5e:4x4, and "
            "libtpu, which pip install 'capret_jax[tpu]' brings "
            f"({str(error).splitlines()[0]})."
        ) from error
    devices: list[Any] = list(found.devices)
    if devices[0].device_kind not in CHIPS:
        raise InputError(f"--topology={topology}: nothing is known of {devices[0].device_kind}.")
    return devices


def training_program(config: ExperimentConfig, mesh: Mesh, classes: int) -> Program:
    """The training step as `Trainer` compiles it.

    Args:
        config: of the run.
        mesh: over the devices to plan for.
        classes: C, identities of the training split.
    """
    setup = StepSetup.create(config, mesh, np.ones(classes, int))
    batch = _on_mesh(abstract_batch(config), mesh)
    arguments = abstract_state(setup), batch
    ideal = ideal_step_flops(config, classes)
    return Program(make_step(setup), arguments, ideal, config.batch_size)


def embedding_program(config: ExperimentConfig, mesh: Mesh) -> Program:
    """The embedding of one batch as an evaluation compiles it."""
    compute = config.compute.on(mesh.devices.flat[0].platform)
    embedder = Embedder(config.model, config.data.view, compute, mesh)
    images, size = config.evaluation.batch_size, config.model.image_size
    tokens = config.data.max_tokens if config.embedding.kind != "image" else 0
    text = jax.ShapeDtypeStruct((images, 1, tokens), jnp.int32)
    pictures = PictureBatch(
        jax.ShapeDtypeStruct((images, size, size, 3), jnp.uint8),
        jax.ShapeDtypeStruct((images, 1, 4), jnp.float32),
        text,
        text,
    )
    _, params = abstract_model(config.model, compute)
    ideal = ideal_embedding_flops(config.model, images)
    return Program(embedder.features, (params, pictures), ideal, images)


def plan(program: Program, mesh: Mesh, chip: Chip) -> dict[str, Any]:
    """Compiles a program and measures it per chip; if it does not fit, its memory alone.

    Returns:
        "fits", "hbm_there" and "hbm_needed" in bytes, "flops" and "ideal_flops"; where it fits also
        "bytes" to and from HBM, "collective_bytes", "collectives" by kind, "seconds" by resource,
        "roofline_seconds", "bound_by", "mfu_bound", "largest_batch", "compile_seconds", and XLA's
        own "xla_flops" and "xla_bytes".
    """
    start = time.perf_counter()
    traced = program.function.trace(*program.arguments)
    figures: dict[str, Any] = {
        "hbm_there": chip.hbm,
        "flops": program_flops(traced.jaxpr.jaxpr) / mesh.size,
        "ideal_flops": program.ideal_flops / mesh.size,
    }
    try:
        compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        return figures | {"fits": False, "hbm_needed": _needed(error)}
    figures |= _measure_memory(compiled, program.images, batch_parts(mesh), chip)
    figures |= _measure_time(compiled, figures, chip)
    return figures | {"compile_seconds": time.perf_counter() - start}


def _on_mesh(tree: Any, mesh: Mesh) -> Any:
    """Abstract arrays, sharded as batches are."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def _measure_memory(compiled, images: int, parts: int, chip: Chip) -> dict[str, Any]:
    memory = compiled.memory_analysis()
    scratch = memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
    lasting = memory.argument_size_in_bytes + memory.output_size_in_bytes
    lasting -= memory.alias_size_in_bytes
    # Scratch grows with the batch; what it does not share with it makes this a low estimate.
    largest = int(images * (_USABLE * chip.hbm - lasting) / scratch)
    return {
        "fits": lasting + scratch <= _USABLE * chip.hbm,
        "hbm_needed": lasting + scratch,
        "largest_batch": largest // parts * parts,
    }


def _measure_time(compiled, figures: dict[str, Any], chip: Chip) -> dict[str, Any]:
    traffic, cost = measure_traffic(compiled.as_text()), compiled.cost_analysis()
    moved = sum(traffic.collective_bytes.values())
    seconds = {
        "compute": figures["flops"] / chip.flops,
        "hbm": traffic.hbm_bytes / chip.hbm_bandwidth,
        "links": moved / chip.link_bandwidth,
    }
    slowest = max(seconds, key=lambda name: seconds[name])
    return {
        "bytes": traffic.hbm_bytes,
        "collective_bytes": moved,
        "collectives": {kind: size for kind, size in traffic.collective_bytes.items() if size},
        "xla_flops": cost["flops"],
        "xla_bytes": cost["bytes accessed"],
        "seconds": seconds,
        "roofline_seconds": seconds[slowest],
        "bound_by": slowest,
        "mfu_bound": figures["ideal_flops"] / chip.flops / seconds[slowest],
    }


def _needed(error: Exception) -> float:
    """Bytes of memory that a compilation failed for."""
    found = re.search(r"(?:Used|required[^(]*\() ?([\d.]+)G", str(error))
    if not found:
        raise error
    return float(found.group(1)) * 2**30
