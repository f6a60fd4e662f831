"""Precision of matrix products: on GPUs the default would round float32 to TF32."""

import ast

import pytest

from tests.conftest import ROOT

_PRODUCTS = {"einsum", "matmul", "dot", "vdot", "inner", "tensordot", "dot_general"}
FILES = sorted((ROOT / "capret_jax" / "losses").glob("*.py"))


def products_without_precision(source: str) -> list[int]:
    """Returns the lines of matrix products that leave their precision to the platform."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult):
            lines.append(node.lineno)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            explicit = any(keyword.arg == "precision" for keyword in node.keywords)
            if node.func.attr in _PRODUCTS and not explicit:
                lines.append(node.lineno)
    return lines


def test_products_are_found():
    source = "a @ b\njnp.einsum('i,i', a, b)\njnp.matmul(a, b, precision=HIGHEST)\n"
    assert products_without_precision(source) == [1, 2]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_losses_state_the_precision_of_every_product(path):
    assert products_without_precision(path.read_text()) == []
