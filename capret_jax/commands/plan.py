"""Does it fit, and how fast can it be? Compiles the real step for TPUs that are not here.

    pip install -e '.[tpu]'
    python tools/plan.py --config=configs/df2_finetune.py --topology=v5e:4x4 [--json=OUT]

Needs no TPU and no data: libtpu compiles for the topology on this machine, in minutes. Per chip and
step: memory, FLOPs of matrix products (recomputation included) against the model's ideal, bytes to
and from HBM, bytes between chips, and the time that the slowest of the three allows (the roofline).
Neither latency nor imperfect kernels are in it: it is a bound.
"""

import dataclasses
import json
import os
import pathlib
import re
import time
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
# libtpu only compiles here: it need not look for a TPU, nor keep others from doing the same.
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("TPU_LOG_DIR", "disabled")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.experimental import topologies
from jax.sharding import Mesh
from ml_collections import config_flags

from capret_jax.command_line import load_config, run
from capret_jax.config import ExperimentConfig, from_config_dict
from capret_jax.data.batch import Batch
from capret_jax.data.masking import MAX_MASKED
from capret_jax.distributed.mesh import batch_parts, batch_sharding, make_mesh
from capret_jax.errors import InputError
from capret_jax.models.x2vlm import abstract_model
from capret_jax.retrieval.embedding import Embedder, PictureBatch
from capret_jax.roofline.compiled import measure_traffic
from capret_jax.roofline.flops import ideal_embedding_flops, ideal_step_flops, program_flops
from capret_jax.train.optimizer import make_optimizer
from capret_jax.train.state import abstract_state
from capret_jax.train.step import make_step

_CONFIG = config_flags.DEFINE_config_file("config", "configs/df2_finetune.py", "The experiment.")
_TOPOLOGY = flags.DEFINE_string("topology", "v5e:4x4", "Kind and shape of the TPU slice.")
_CLASSES = flags.DEFINE_integer("classes", 20_000, "Identities of the training split.")
_JSON = flags.DEFINE_string("json", None, "Write the figures here, too.")


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


_CHIPS = {
    "TPU v4": Chip(32 * 2**30, 275e12, 1228e9, 300e9),
    "TPU v5 lite": Chip(16 * 2**30, 197e12, 819e9, 200e9),
    "TPU v5": Chip(95 * 2**30, 459e12, 2765e9, 600e9),
    "TPU v6 lite": Chip(32 * 2**30, 918e12, 1640e9, 448e9),
}

# XLA keeps some HBM for itself.
_USABLE = 15.75 / 16


def main(argv: list[str]) -> None:
    """Prints, and writes, both plans."""
    del argv
    config = from_config_dict(load_config(_CONFIG))
    devices = _devices(_TOPOLOGY.value)
    kind = devices[0].device_kind
    if kind not in _CHIPS:
        raise InputError(f"--topology={_TOPOLOGY.value}: nothing is known of {kind}.")
    chip, mesh = _CHIPS[kind], make_mesh(config.mesh, devices)
    config = dataclasses.replace(config, compute=config.compute.on("tpu"))
    _check_batch(config, mesh)
    print(f"{len(devices)} x {kind}, mesh {dict(mesh.shape)}, {config.compute}")
    plans = {"training": _plan(chip, mesh, config.batch_size, *_training(config, mesh))}
    _show("training step", config.batch_size, plans["training"])
    batch = config.evaluation.batch_size
    plans["embedding"] = _plan(chip, mesh, batch, *_embedding(config, mesh))
    _show("evaluation embedding", batch, plans["embedding"])
    if _JSON.value:
        content = {**plans["training"], "embedding": plans["embedding"]}
        pathlib.Path(_JSON.value).write_text(json.dumps(content, indent=2) + "\n")


def _devices(topology: str) -> list[jax.Device]:
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    except Exception as error:  # libtpu raises RuntimeErrors of several kinds
        raise InputError(
            f"--topology={topology} cannot be compiled for: expected a name such as v5e:4x4, and "
            "libtpu, which pip install 'capret_jax[tpu]' brings "
            f"({str(error).splitlines()[0]})."
        ) from error
    return list(found.devices)


def _check_batch(config: ExperimentConfig, mesh: Mesh) -> None:
    parts = batch_parts(mesh)
    for name, size in (
        ("batch_size", config.batch_size),
        ("evaluation.batch_size", config.evaluation.batch_size),
    ):
        if size % parts:
            raise InputError(f"config.{name}={size} does not divide over {parts} parts.")


def _training(config: ExperimentConfig, mesh: Mesh):
    """The jitted step, its abstract arguments, and its ideal FLOPs."""
    optimizer = make_optimizer(config.optimizer, config.loop.steps)
    graphdef, _ = abstract_model(config.model, config.compute)
    state = abstract_state(
        config.model,
        _CLASSES.value,
        optimizer,
        mesh,
        config.loss.arcface_subcentres,
        config.optimizer.ema_decay > 0,
    )
    regions, dtype = config.data.view.regions, config.compute.dtype
    step = make_step(
        graphdef,
        config.loss,
        regions,
        dtype,
        optimizer,
        mesh,
        state,
        config.seed,
        np.ones(_CLASSES.value, int),
        config.accumulation,
        config.optimizer.ema_decay,
    )
    items = config.batch_size * config.data.view.regions_per_image
    ideal = ideal_step_flops(
        config.model,
        config.loss,
        config.batch_size,
        items,
        config.data.max_tokens,
        _CLASSES.value,
    )
    return step, (state, _abstract_batch(config, mesh)), ideal


def _abstract_batch(config: ExperimentConfig, mesh: Mesh) -> Batch:
    images, size, tokens = config.batch_size, config.model.image_size, config.data.max_tokens
    items = images * config.data.view.regions_per_image

    def array(*shape: int, dtype: Any = jnp.int32):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(mesh))

    mlm = bool(config.loss.mlm)
    return Batch(
        image=array(images, size, size, 3, dtype=jnp.uint8),
        token_ids=array(items, tokens),
        token_mask=array(items, tokens),
        identity=array(items),
        caption_id=array(items),
        box=array(items, 4, dtype=jnp.float32),
        valid=array(items, dtype=bool),
        masked_ids=array(items, tokens) if mlm else None,
        masked_positions=array(items, MAX_MASKED) if mlm else None,
        masked_labels=array(items, MAX_MASKED) if mlm else None,
    )


def _embedding(config: ExperimentConfig, mesh: Mesh):
    """The jitted embedding, its abstract arguments, and its ideal FLOPs."""
    graphdef, params = abstract_model(config.model, config.compute)
    embedder = Embedder(graphdef, params, config.data.view.regions, config.compute.dtype, mesh)
    images, size = config.evaluation.batch_size, config.model.image_size
    tokens = config.data.max_tokens if config.embedding.kind != "image" else 0
    pictures = PictureBatch(
        jax.ShapeDtypeStruct((images, size, size, 3), jnp.uint8),
        jax.ShapeDtypeStruct((images, 1, 4), jnp.float32),
        *[jax.ShapeDtypeStruct((images, 1, tokens), jnp.int32)] * 2,
    )
    return embedder.features, (params, pictures), ideal_embedding_flops(config.model, images)


def _plan(chip: Chip, mesh: Mesh, batch: int, function, arguments, ideal: float) -> dict[str, Any]:
    """Compiles and measures; of a program that does not fit, its memory alone."""
    start = time.perf_counter()
    traced = function.trace(*arguments)
    figures: dict[str, Any] = {
        "hbm_there": chip.hbm,
        "flops": program_flops(traced.jaxpr.jaxpr) / mesh.size,
        "ideal_flops": ideal / mesh.size,
    }
    try:
        compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        return figures | {"fits": False, "hbm_needed": _needed(error)}
    memory, traffic = compiled.memory_analysis(), measure_traffic(compiled.as_text())
    scratch = memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
    lasting = memory.argument_size_in_bytes + memory.output_size_in_bytes
    lasting -= memory.alias_size_in_bytes
    seconds = {
        "compute": figures["flops"] / chip.flops,
        "hbm": traffic.hbm_bytes / chip.hbm_bandwidth,
        "links": sum(traffic.collective_bytes.values()) / chip.link_bandwidth,
    }
    slowest = max(seconds, key=lambda name: seconds[name])
    # Scratch grows with the batch; what it does not share with it makes this a low estimate.
    largest = int(batch * (_USABLE * chip.hbm - lasting) / scratch)
    return figures | {
        "fits": lasting + scratch <= _USABLE * chip.hbm,
        "hbm_needed": lasting + scratch,
        "bytes": traffic.hbm_bytes,
        "collective_bytes": sum(traffic.collective_bytes.values()),
        "collectives": {kind: size for kind, size in traffic.collective_bytes.items() if size},
        "xla_flops": compiled.cost_analysis()["flops"],
        "xla_bytes": compiled.cost_analysis()["bytes accessed"],
        "seconds": seconds,
        "roofline_seconds": seconds[slowest],
        "bound_by": slowest,
        "mfu_bound": figures["ideal_flops"] / chip.flops / seconds[slowest],
        "largest_batch": largest // batch_parts(mesh) * batch_parts(mesh),
        "compile_seconds": time.perf_counter() - start,
    }


def _needed(error: Exception) -> float:
    """The memory that a compilation failed for."""
    found = re.search(r"(?:Used|required[^(]*\() ?([\d.]+)G", str(error))
    if not found:
        raise error
    return float(found.group(1)) * 2**30


def _show(name: str, batch: int, plan: dict[str, Any]) -> None:
    print(f"\n{name}, {batch} images, per chip")
    room = 1 - plan["hbm_needed"] / plan["hbm_there"]
    fits = f"{room:.0%} to spare" if plan["fits"] else "DOES NOT FIT: see docs/scaling.md"
    _line("HBM", f"{plan['hbm_needed'] / 1e9:.2f} of {plan['hbm_there'] / 1e9:.2f} GB, {fits}")
    ratio = plan["flops"] / plan["ideal_flops"]
    _line("FLOPs", f"{plan['flops'] / 1e12:.2f} T, {ratio:.2f}x the ideal")
    if not plan["fits"] or "bytes" not in plan:
        return
    _line("HBM traffic", f"{plan['bytes'] / 1e9:.1f} GB")
    moved = ", ".join(f"{kind} {size / 1e6:.0f} MB" for kind, size in plan["collectives"].items())
    _line("collectives", moved or "none")
    times = ", ".join(f"{key} {value * 1e3:.0f} ms" for key, value in plan["seconds"].items())
    _line("roofline", f"{times}: bound by {plan['bound_by']}")
    rate = batch / plan["roofline_seconds"]
    _line("at best", f"MFU {plan['mfu_bound']:.0%}, {rate:.0f} images/s on the whole slice")
    _line("largest batch", f"about {plan['largest_batch']}")
    _line("compiled in", f"{plan['compile_seconds']:.0f} s")


def _line(name: str, text: str) -> None:
    print(f"    {name:15}{text}")


def cli() -> None:
    """Runs the command: the console script, and `tools/plan.py`."""
    run(main)
