"""Muon for the matrices of encoder layers, AdamW's direction for all else.

Muon: K. Jordan and others, "Muon: an optimizer for hidden layers in neural networks", 2024. The
momentum of a matrix is replaced by a matrix of the same singular vectors whose singular values are
all about 1. The scale is that of arXiv 2502.16982, equation 4, so that learning rate and weight
decay are those of AdamW.
"""

import re

import jax
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from capret_jax.distributed.mesh import path_name

# Embeddings, heads and projections are left to AdamW, as in both sources.
_MATRIX = re.compile(r"model/.*/(blocks|layers)/\d+/.*/kernel")
_MOMENTUM = 0.95
# Root mean square of AdamW's updates, as observed in arXiv 2502.16982.
_ADAM_RMS = 0.2


def muon_or_adam(adam: optax.GradientTransformation) -> optax.GradientTransformation:
    """Makes the direction of updates: by Muon for the matrices of layers, else by `adam`."""
    muon = optax.chain(
        scale_by_muon(beta=_MOMENTUM, weight_dimension_numbers=_dimensions),
        optax.stateless(_scaled),
    )
    return optax.partition({"muon": muon, "adam": adam}, _labels)


def _labels(params):
    """Returns a tree of "muon" and "adam"."""

    def label(path, _):
        return "muon" if _MATRIX.fullmatch(path_name(path)) else "adam"

    return jax.tree.map_with_path(label, params)


def _dimensions(updates):
    """Returns the axes of each matrix, (inputs, outputs); the default fails beside other labels."""
    return jax.tree.map(lambda _: MuonDimensionNumbers(), updates)


def _scaled(updates, _):
    return jax.tree.map(lambda x: x * (_ADAM_RMS * max(x.shape) ** 0.5), updates)
