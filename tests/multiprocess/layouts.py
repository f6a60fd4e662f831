"""Trains and evaluates with every layout of the mesh, as one process of a group.

    python -m tests.multiprocess.layouts PREPARED_DIR OUT LAYOUTS COORDINATOR COUNT INDEX

A process of each group starts once for all layouts, since starting takes longer than training.
"""

import dataclasses
import pathlib
import sys

import jax

from capret_jax.config import (
    DetectionConfig,
    EvaluationConfig,
    ExperimentConfig,
    LoopConfig,
    LossConfig,
    MeshConfig,
    OptimizerConfig,
    from_config_dict,
)
from capret_jax.distributed.process_group import join
from capret_jax.evaluation.suite import EvaluationSuite
from capret_jax.train.run import Run
from capret_jax.train.trainer import Trainer
from configs import demo

# Layouts of four devices.
LAYOUTS = {
    "data 4": MeshConfig(data=4),
    "fsdp 4": MeshConfig(data=1, fsdp=4),
    "data 2 x tensor 2": MeshConfig(data=2, tensor=2),
    "fsdp 2 x tensor 2": MeshConfig(data=1, fsdp=2, tensor=2),
    "tensor 4": MeshConfig(data=1, tensor=4),
}
ONE_DEVICE = "one device"
# Those that detect garments, too: a process does so on its own devices, whatever the layout.
DETECTING = (ONE_DEVICE, "fsdp 2 x tensor 2")


def shrunk(prepared_dir: str, layout: str) -> ExperimentConfig:
    """Returns the demo's config with a small model, for three steps on the mini dataset."""
    config, detect = from_config_dict(demo.get_config()), layout in DETECTING
    return dataclasses.replace(
        config,
        batch_size=16,
        mesh=LAYOUTS.get(layout, MeshConfig()),
        data=dataclasses.replace(config.data, variant="mini", prepared_dir=prepared_dir),
        evaluation=EvaluationConfig(
            batch_size=16, detect=detect, detection=DetectionConfig("locations"), baselines=False
        ),
        model=dataclasses.replace(
            config.model, vision_depth=1, image_size=32, location_layers=1, location_items=2
        ),
        # Losses over the whole batch and over all classes, and of other photographs; others compile
        # longer.
        loss=LossConfig(itc=1, arcface=1, itm=0, box_l1=0, box_giou=0, locations=1),
        # A small rate, since Adam turns rounding in a vanishing gradient into a step of this size.
        optimizer=OptimizerConfig("muon", learning_rate=1e-5, warmup_steps=1),
        loop=LoopConfig(steps=3, log_every=1, checkpoint_every=3),
    )


def main(prepared_dir: str, out: str, layouts: str, *group: str) -> None:
    """Trains and evaluates in folders of OUT that have the names of the layouts.

    Args:
        prepared_dir: folder of prepared datasets.
        out: OUT.
        layouts: names from `LAYOUTS`, or `ONE_DEVICE`, with commas between them.
        group: address of the coordinator, number of processes, index of this one.
    """
    coordinator, count, index = group
    if int(count) > 1:
        join(coordinator, int(count), int(index))
    for name in layouts.split(","):
        assert len(jax.devices()) == (1 if name == ONE_DEVICE else 4)
        workdir = pathlib.Path(out) / name
        workdir.mkdir(parents=True, exist_ok=True)
        run = Run(shrunk(prepared_dir, name), workdir)
        Trainer(run).train()
        EvaluationSuite(run).run(run.state_to_evaluate())


if __name__ == "__main__":
    main(*sys.argv[1:])
