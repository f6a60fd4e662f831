"""Memory, FLOPs and traffic of a config's programs, compiled for devices that are not here.

XLA compiles for a topology without the hardware. The roofline is a lower bound of a program's time:
that of the slowest of matrix units, HBM and links at their peak rates, without latency.
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
        hbm: size of HBM in bytes.
        flops: bfloat16 peak in FLOP/s.
        hbm_bandwidth: bandwidth of HBM in bytes per second.
        link_bandwidth: bandwidth to all other chips together in bytes per second.
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

# Fraction of HBM that programs can use; XLA reserves the rest.
_USABLE = 15.75 / 16


class Program(NamedTuple):
    """A jitted function to compile and measure.

    Attributes:
        function: the jitted function that a run would call.
        arguments: trees of `jax.ShapeDtypeStruct`, the arguments of a call.
        ideal_flops: fewest matrix-product FLOPs of a call, of all devices together.
        images: pictures of a call.
    """

    function: Any
    arguments: tuple
    ideal_flops: float
    images: int


def topology_devices(topology: str) -> list[jax.Device]:
    """Returns the devices of a TPU slice.

    Args:
        topology: name of the slice, "v5e:4x4" for instance.

    Raises:
        InputError: there is no such topology, its chip is not in `CHIPS`, or libtpu is not
            installed.
    """
    try:
        description = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    except Exception as error:  # libtpu raises RuntimeErrors of several kinds
        raise InputError(
            f"--topology={topology} cannot be compiled for: expected a name such as v5e:4x4, and "
            "libtpu, which pip install 'capret_jax[tpu]' brings "
            f"({str(error).splitlines()[0]})."
        ) from error
    devices: list[Any] = list(description.devices)
    if devices[0].device_kind not in CHIPS:
        raise InputError(f"--topology={topology}: nothing is known of {devices[0].device_kind}.")
    return devices


def training_program(config: ExperimentConfig, mesh: Mesh, classes: int) -> Program:
    """Returns the training step as `Trainer` compiles it.

    Args:
        config: configuration of the run.
        mesh: mesh of the devices to plan for.
        classes: C, number of identities of the training split.
    """
    setup = StepSetup.create(config, mesh, np.ones(classes, int))
    batch = _on_mesh(abstract_batch(config), mesh)
    arguments = abstract_state(setup), batch
    ideal = ideal_step_flops(config, classes)
    return Program(make_step(setup), arguments, ideal, config.batch_size)


def embedding_program(config: ExperimentConfig, mesh: Mesh) -> Program:
    """Returns the embedding at evaluation of a batch of pictures with one item each."""
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
    """Compiles a program and measures it per chip; only its memory if it does not fit.

    Args:
        program: a program of `training_program` or `embedding_program`.
        mesh: the mesh that it was made for.
        chip: figures of the mesh's devices.

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
    """Adds the sharding of batches to abstract arrays."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def _measure_memory(compiled, images: int, parts: int, chip: Chip) -> dict[str, Any]:
    memory = compiled.memory_analysis()
    scratch = memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
    lasting = memory.argument_size_in_bytes + memory.output_size_in_bytes
    lasting -= memory.alias_size_in_bytes
    # A low estimate: it takes all of the scratch memory to grow with the batch.
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
    """Returns the bytes of memory that a compilation failed for."""
    match = re.search(r"(?:Used|required[^(]*\() ?([\d.]+)G", str(error))
    if not match:
        raise error
    return float(match.group(1)) * 2**30
