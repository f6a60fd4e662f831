"""A language model on this machine, through transformers and torch."""

import asyncio
import sys

import pytest

from capret_jax.captioning.transformers_model import TransformersModel
from capret_jax.errors import InputError


@pytest.mark.torch
def test_batched_completions_equal_single_ones(tiny_phi3):
    fast, path = tiny_phi3

    async def run(*prompts):
        model = TransformersModel(str(path))
        try:
            return await asyncio.gather(*map(model, prompts))
        finally:
            await model.close()

    together = asyncio.run(run("colour ?", "colour", "? ? ?"))
    alone = [asyncio.run(run(prompt))[0] for prompt in ("colour ?", "colour", "? ? ?")]
    assert [reply.prompt_tokens for reply in together] == [
        len(fast(f"<|user|> {p} ", add_special_tokens=False)["input_ids"])
        for p in ("colour ?", "colour", "? ? ?")
    ]
    # Left padding does not change a completion.
    assert [reply.text for reply in together] == [reply.text for reply in alone]
    assert all(len(reply.text.split()) <= reply.completion_tokens <= 64 for reply in together)
    assert all(reply.text for reply in together)


def test_missing_torch_is_an_input_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InputError, match="needs torch.*pip install torch"):
        TransformersModel("anything")
