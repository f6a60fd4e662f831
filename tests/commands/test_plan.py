"""The plan of re-ranking, the program of `capret-plan` that is not of roofline/plan.py."""

import os
from unittest import mock

import jax
import pytest

from capret_jax.config import MeshConfig
from capret_jax.distributed.mesh import make_mesh
from capret_jax.roofline.flops import program_flops
from capret_jax.tasks.evaluators import make_evaluator
from capret_jax.tasks.evaluators.matching import PairMatcher, abstract_pairs
from tests.commands.in_process import load
from tests.tasks.files import write_retrieval
from tests.tasks.runs import random_params, tiny_run


@pytest.fixture
def run(tmp_path):
    mesh = make_mesh(MeshConfig(), jax.devices()[:2])
    return tiny_run(write_retrieval(tmp_path), tmp_path, mesh)


def test_the_planned_re_ranking_has_the_ideal_flops(run):
    with mock.patch.dict(os.environ):  # the command sets variables for its process
        command = load("capret_jax.commands.plan")
    program = command.matching_program(run.config, run.mesh)
    assert program.images == 2 * 128  # pairs of two devices
    traced = program.function.trace(*program.arguments)
    flops = program_flops(traced.jaxpr.jaxpr)
    assert flops == pytest.approx(program.ideal_flops, rel=1e-9)


def test_planned_pairs_are_at_least_those_of_an_evaluation(run, monkeypatch):
    batches, made = [], PairMatcher._batches
    monkeypatch.setattr(
        PairMatcher, "_batches", lambda *args: (batches.append(b) or b for b in made(*args))
    )
    make_evaluator(run).measure(random_params())
    planned = abstract_pairs(run.config, run.mesh)
    for batch in batches:
        for array, limit in zip(batch, planned, strict=True):
            assert array.dtype == limit.dtype and array.ndim == len(limit.shape)
            assert all(size <= most for size, most in zip(array.shape, limit.shape, strict=True))
    assert batches
