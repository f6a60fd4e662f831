"""Batches of rows, and functions of the model on a mesh."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from capret_jax.config import ComputeConfig, MeshConfig
from capret_jax.distributed.batch_share import BatchShare
from capret_jax.distributed.mesh import make_mesh
from capret_jax.tasks.evaluators.mesh_model import MeshFunction, array_batches, batch_rows
from tests.tasks.files import write_captioning
from tests.tasks.runs import random_params, tiny_run


def test_each_row_is_provided_once_and_the_last_one_pads(tmp_path):
    run = tiny_run(write_captioning(tmp_path), tmp_path, make_mesh(MeshConfig()))
    shares = [BatchShare.even(index, 3) for index in range(3)]
    parts = [batch_rows(dataclasses.replace(run, share=share), 16, 6) for share in shares]
    np.testing.assert_array_equal(
        np.concatenate(parts, axis=1), [range(6), range(6, 12), [12, 13, 14, 15, 15, 15]]
    )


def test_it_computes_in_the_dtype_of_the_config(tmp_path):
    run = tiny_run(write_captioning(tmp_path), tmp_path, make_mesh(MeshConfig()))
    config = dataclasses.replace(run.config, compute=ComputeConfig("bfloat16"))

    def sizes(model, batch, shared):
        return jnp.full(len(batch), model.vision_proj.kernel[...].dtype.itemsize) + batch + shared

    def call(run):
        batches = array_batches(run, np.arange(20), 8)
        return MeshFunction(run.config, run.mesh, sizes).by_row(
            random_params(), batches, 20, (np.int32(100),)
        )

    np.testing.assert_array_equal(call(run), np.arange(104, 124))
    np.testing.assert_array_equal(
        call(dataclasses.replace(run, config=config)), np.arange(102, 122)
    )
    assert len(jax.devices()) == 8
