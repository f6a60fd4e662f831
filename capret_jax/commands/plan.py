"""Plans a config for TPUs or GPUs: compiles its real step without them, and predicts its limits.

    pip install -e '.[tpu]'   # or '.[cuda]'
    python tools/plan.py --config=configs/df2_finetune.py --topology=v5e:4x4 [--json=OUT]

Topologies are slices of TPUs (v4, v5e, v5p, v6e), the GPUs of a host (a100:8, h100:8, h200:8), or
of several (h100:4x8). Needs neither the devices nor data: libtpu or JAX's CUDA plugin compiles here
in minutes. Writes nothing but --json. The output has, per chip and step: memory; FLOPs of matrix
products, recomputation included, and their ratio to the model's ideal; bytes to and from HBM; bytes
between chips; and the roofline, the time of the slowest of the three at its peak rate. It is a
lower bound, without latency.
"""

import json
import os
import pathlib
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
# Planning touches no device, nor the memory of a GPU that is here.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Programs for devices that are not here cannot be loaded from a cache.
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
# libtpu only compiles here: it does not look for a TPU, and several processes may use it at once.
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("TPU_LOG_DIR", "disabled")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

from absl import flags
from jax.sharding import Mesh
from ml_collections import config_flags

from capret_jax.command_line import load_config, run
from capret_jax.config import ExperimentConfig, from_config_dict
from capret_jax.distributed.mesh import batch_parts, make_mesh
from capret_jax.errors import InputError
from capret_jax.models.x2vlm import abstract_model
from capret_jax.roofline.flops import ideal_matching_flops
from capret_jax.roofline.plan import (
    Program,
    embedding_program,
    open_topology,
    plan,
    training_program,
)
from capret_jax.tasks.evaluators.matching import abstract_pairs, match_function

_CONFIG = config_flags.DEFINE_config_file("config", "configs/df2_finetune.py", "Config file.")
_TOPOLOGY = flags.DEFINE_string("topology", "v5e:4x4", "Kind and shape: v5e:4x4, h100:8, h100:4x8.")
_CLASSES = flags.DEFINE_integer("classes", 20_000, "Identities of the training split.")
_JSON = flags.DEFINE_string("json", None, "Write the figures here, too.")


def main(argv: list[str]) -> None:
    """Prints and writes the plans of the training step, and of the programs of an evaluation."""
    del argv
    config = from_config_dict(load_config(_CONFIG))
    topology = open_topology(str(_TOPOLOGY.value))
    chip, mesh = topology.chip, make_mesh(config.mesh, topology.devices)
    _check_batch(config, mesh)
    compute = config.compute.on(topology.devices[0].platform)
    print(f"{mesh.size} x {topology.kind}, mesh {dict(mesh.shape)}, {compute}")
    training = plan(training_program(config, mesh, int(_CLASSES.value)), mesh, chip)
    _show("training step", config.batch_size, training)
    embedding = plan(embedding_program(config, mesh), mesh, chip)
    _show("evaluation embedding", config.evaluation.batch_size, embedding)
    content = {**training, "embedding": embedding}
    if config.task.name == "retrieval":
        program = matching_program(config, mesh)
        content["matching"] = plan(program, mesh, chip)
        _show("re-ranking", program.images, content["matching"], "pairs")
    if _JSON.value:
        pathlib.Path(_JSON.value).write_text(json.dumps(content, indent=2) + "\n")


def _check_batch(config: ExperimentConfig, mesh: Mesh) -> None:
    parts = batch_parts(mesh)
    for name, size in (
        ("batch_size", config.batch_size),
        ("evaluation.batch_size", config.evaluation.batch_size),
    ):
        if size % parts:
            raise InputError(f"config.{name}={size} does not divide over {parts} parts.")


def matching_program(config: ExperimentConfig, mesh: Mesh) -> Program:
    """Returns the re-ranking of image-text retrieval; its unit is a pair of image and text."""
    pairs, (_, params) = abstract_pairs(config, mesh), abstract_model(config.model)
    groups, texts, tokens = pairs.mask.shape
    ideal = ideal_matching_flops(config.model, groups, texts, tokens)
    function = match_function(config, mesh).jitted
    return Program(function, (params, pairs, ()), ideal, groups * texts)


def _show(name: str, batch: int, figures: dict[str, Any], unit: str = "images") -> None:
    print(f"\n{name}, {batch} {unit}, per chip")
    room = 1 - figures["hbm_needed"] / figures["hbm_there"]
    fits = f"{room:.0%} to spare" if figures["fits"] else "DOES NOT FIT: see docs/scaling.md"
    needed, there = (figures[key] / 1e9 for key in ("hbm_needed", "hbm_there"))
    _line("HBM", f"{needed:.2f} of {there:.2f} GB, {fits}")
    ratio = figures["flops"] / figures["ideal_flops"]
    _line("FLOPs", f"{figures['flops'] / 1e12:.2f} T, {ratio:.2f}x the ideal")
    if not figures["fits"] or "bytes" not in figures:
        return
    _line("HBM traffic", f"{figures['bytes'] / 1e9:.1f} GB")
    moved = (f"{kind} {size / 1e6:.0f} MB" for kind, size in figures["collectives"].items())
    _line("collectives", ", ".join(moved) or "none")
    times = ", ".join(f"{key} {value * 1e3:.0f} ms" for key, value in figures["seconds"].items())
    _line("roofline", f"{times}: bound by {figures['bound_by']}")
    rate = batch / figures["roofline_seconds"]
    _line("at best", f"MFU {figures['mfu_bound']:.0%}, {rate:.0f} {unit}/s on all chips")
    _line("largest batch", f"about {figures['largest_batch']}")
    _line("compiled in", f"{figures['compile_seconds']:.0f} s")


def _line(name: str, text: str) -> None:
    print(f"    {name:15}{text}")


def cli() -> None:
    """Runs the command: the console script, and `tools/plan.py`."""
    run(main)
