"""Memory, FLOPs and traffic of a config's programs, compiled for devices that are not here.

XLA compiles for a topology without the hardware. The roofline is a lower bound of a program's time:
that of the slowest of matrix units, HBM and links at their peak rates, without latency.
"""

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
from capret_jax.roofline.chips import CHIPS, GPUS, Chip
from capret_jax.roofline.compiled import measure_traffic
from capret_jax.roofline.flops import ideal_embedding_flops, ideal_step_flops, program_flops
from capret_jax.train.setup import StepSetup
from capret_jax.train.state import abstract_state
from capret_jax.train.step import make_step

# Of Triton's matrix products XLA finds no tiles without the GPU to time them on; cuBLAS needs none.
_GPU_OPTIONS = {"xla_gpu_enable_triton_gemm": False, "xla_gpu_autotune_level": 0}


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


class Topology(NamedTuple):
    """Devices that are not here.

    Attributes:
        devices: the devices, which programs can be compiled for but not run on.
        chip: figures of each of them.
    """

    devices: list[jax.Device]
    chip: Chip

    @property
    def kind(self) -> str:
        """Kind of its devices, a key of `CHIPS`."""
        return self.devices[0].device_kind


def open_topology(name: str) -> Topology:
    """Returns the devices of a TPU slice or of hosts with GPUs.

    Args:
        name: kind and shape: "v5e:4x4", "h100:8" for the GPUs of a host, "h100:4x8" for four hosts.

    Raises:
        InputError: there is no such topology, its chip is not in `CHIPS`, or its compiler is not
            installed.
    """
    kind, _, shape = name.partition(":")
    return _gpu_topology(name, kind, shape) if kind in GPUS else _tpu_topology(name)


def _gpu_topology(name: str, kind: str, shape: str) -> Topology:
    if not re.fullmatch(r"([1-9]\d*x)?[1-9]\d*", shape):
        raise InputError(
            f"--topology={name}: expected the number of GPUs of a host, such as {kind}:8, or hosts "
            f"and GPUs of each, such as {kind}:4x8."
        )
    hosts, count = (int(size) for size in f"1x{shape}".split("x")[-2:])
    gpu = GPUS[kind]
    try:
        description = topologies.get_topology_desc(
            platform="cuda", topology=f"1x{hosts}x{count}", target_config=gpu.target_config()
        )
    except NotImplementedError as error:
        raise InputError(
            f"--topology={name} needs XLA's compiler for GPUs, which "
            "pip install 'capret_jax[cuda]' brings; no GPU or driver is needed."
        ) from error
    return Topology(list(description.devices), CHIPS[gpu.kind].on_hosts(hosts, count))


def _tpu_topology(name: str) -> Topology:
    try:
        description = topologies.get_topology_desc(platform="tpu", topology_name=name)
    except Exception as error:  # libtpu raises RuntimeErrors of several kinds
        raise InputError(
            f"--topology={name} cannot be compiled for: expected a name such as v5e:4x4 or h100:8, "
            "and for TPUs libtpu, which pip install 'capret_jax[tpu]' brings "
            f"({str(error).splitlines()[0]})."
        ) from error
    devices: list[Any] = list(description.devices)
    if devices[0].device_kind not in CHIPS:
        raise InputError(f"--topology={name}: nothing is known of {devices[0].device_kind}.")
    return Topology(devices, CHIPS[devices[0].device_kind])


def training_program(config: ExperimentConfig, mesh: Mesh, classes: int) -> Program:
    """Returns the training step as `Trainer` compiles it.

    Args:
        config: configuration of the run.
        mesh: mesh of the devices to plan for.
        classes: C, number of identities of the training split.
    """
    # The factors of rates do not change the plan, and the checkpoint that decides may not be here.
    setup = StepSetup.create(config, mesh, np.ones(classes, int), fresh=())
    batch = _on_mesh(abstract_batch(config), mesh)
    arguments = abstract_state(setup), batch
    ideal = ideal_step_flops(config, classes)
    return Program(make_step(setup), arguments, ideal, config.images_per_step)


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
        own "xla_flops" and "xla_bytes", which are None for GPUs.
    """
    start = time.perf_counter()
    traced = program.function.trace(*program.arguments)
    figures: dict[str, Any] = {
        "hbm_there": chip.hbm,
        "flops": program_flops(traced.jaxpr.jaxpr) / mesh.size,
        "ideal_flops": program.ideal_flops / mesh.size,
    }
    options = _GPU_OPTIONS if mesh.devices.flat[0].platform == "gpu" else None
    try:
        compiled = traced.lower().compile(compiler_options=options)
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
    largest = int(images * (chip.usable * chip.hbm - lasting) / scratch)
    return {
        "fits": lasting + scratch <= chip.usable * chip.hbm,
        "hbm_needed": lasting + scratch,
        "largest_batch": largest // parts * parts,
    }


def _measure_time(compiled, figures: dict[str, Any], chip: Chip) -> dict[str, Any]:
    traffic, cost = measure_traffic(compiled.as_text()), compiled.cost_analysis() or {}
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
        "xla_flops": cost.get("flops"),
        "xla_bytes": cost.get("bytes accessed"),
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
