"""Encoders at base size, compared with Hugging Face's PyTorch code on random weights.

The tests are skipped without torch. To run them: pip install torch, then pytest -m torch.
"""

import dataclasses
import re

import jax
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import unflatten_dict

from capret_jax.checkpoints.beit_bert import from_beit_and_bert
from capret_jax.checkpoints.conversion import convert_tensors, parameter_shapes
from capret_jax.checkpoints.names import reference_names
from capret_jax.config import SIZES
from capret_jax.config.model import PLAIN
from capret_jax.models.decoder import AnswerDecoder
from capret_jax.models.x2vlm import abstract_model, bind

pytestmark = pytest.mark.torch
BASE = SIZES["base"]
# Difference of two float32 implementations after 12 layers of width 768.
TOLERANCE = 5e-5

BEIT_NAMES = (
    (r"^embeddings\.cls_token", "cls_token"),
    (r"^embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"^layers\.", "blocks."),
    (r"lambda_", "gamma_"),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
    (r"\.relative_position_bias\.", ".attn."),
    (r"attention\.o_proj", "attn.proj"),
    (r"^pooler\.layernorm", "fc_norm"),
)


@pytest.fixture(scope="module")
def torch():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    return torch


def randomized(torch, model):
    """Sets random weights that are large enough for every term to matter."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn_like(parameter)
            if re.search(r"(norm|LayerNorm)[^.]*\.weight|lambda_", name):
                parameter.copy_(1 + 0.1 * noise)
            else:
                fan_in = parameter[0].numel() if parameter.ndim > 1 else 100
                parameter.copy_(noise * fan_in**-0.5)
    return model.eval()


def numpy_state(model) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def beit_names(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Converts Hugging Face's names and split matrices to those of the BEiT-v2 files."""
    renamed = {}
    for name, array in state.items():
        for pattern, replacement in BEIT_NAMES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = array
    for i in range(BASE.vision_depth):
        old, new = f"blocks.{i}.attention", f"blocks.{i}.attn"
        matrices = [renamed.pop(f"{old}.{part}_proj.weight") for part in "qkv"]
        renamed[f"{new}.qkv.weight"] = np.concatenate(matrices)
        renamed[f"{new}.q_bias"] = renamed.pop(f"{old}.q_proj.bias")
        renamed[f"{new}.v_bias"] = renamed.pop(f"{old}.v_proj.bias")
    return renamed


@pytest.fixture(scope="module")
def beit(torch):
    from transformers import BeitConfig, BeitModel

    config = BeitConfig(
        use_relative_position_bias=True, layer_norm_eps=1e-6, hidden_dropout_prob=0.0
    )
    return randomized(torch, BeitModel(config))


@pytest.fixture(scope="module")
def bert(torch):
    from transformers import BertConfig, BertModel

    return randomized(torch, BertModel(BertConfig()))


@pytest.fixture(scope="module")
def model(beit, bert):
    converted = from_beit_and_bert(beit_names(numpy_state(beit)), numpy_state(bert))
    assert converted.report.size == "base"
    return bind(abstract_model(converted.config)[0], converted.params)


def text_batch():
    rng = np.random.default_rng(0)
    ids = rng.integers(1000, BASE.vocab_size, (2, 12))
    mask = np.ones((2, 12), np.int64)
    mask[1, 7:] = 0
    return ids, mask


def test_vision(torch, beit, model):
    pixels = np.random.default_rng(0).normal(size=(2, 224, 224, 3)).astype(np.float32)
    with torch.no_grad():
        hidden = beit(torch.from_numpy(pixels.transpose(0, 3, 1, 2))).last_hidden_state
        # X2-VLM pools after this norm, Hugging Face before it.
        patches = beit.pooler.layernorm(hidden[:, 1:])
    expected = torch.cat([patches.mean(dim=1, keepdim=True), patches], dim=1).numpy()
    actual = jax.jit(model.encode_image)(pixels)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE)


def test_text(torch, bert, model):
    ids, mask = text_batch()
    with torch.no_grad():
        hidden = bert(torch.from_numpy(ids), torch.from_numpy(mask)).last_hidden_state.numpy()
    actual = jax.jit(model.encode_text)(ids, mask)
    real = mask > 0
    np.testing.assert_allclose(actual[real], hidden[real], rtol=0, atol=TOLERANCE)


def test_answer_decoder(torch):
    from transformers import BertConfig, BertLMHeadModel

    config = dataclasses.replace(BASE, decoder_layers=6)
    settings = BertConfig(num_hidden_layers=6, is_decoder=True, add_cross_attention=True)
    reference = randomized(torch, BertLMHeadModel(settings))
    state = {f"text_decoder.{name}": array for name, array in numpy_state(reference).items()}
    names = {
        path: tensor
        for path, tensor in reference_names(config, "vqa").items()
        if path.startswith("decoder/")
    }
    arrays, problems = convert_tensors(state, names, parameter_shapes(config))
    assert not problems
    params = unflatten_dict(
        {path.removeprefix("decoder/"): array for path, array in arrays.items()}, sep="/"
    )
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: AnswerDecoder(config, PLAIN)))
    decoder = bind(graphdef, params)

    ids, mask = text_batch()
    question = np.random.default_rng(1).normal(size=(2, 9, 768)).astype(np.float32)
    question_mask = np.ones((2, 9), np.int64)
    question_mask[0, 5:] = 0
    with torch.no_grad():
        logits = reference(
            torch.from_numpy(ids),
            attention_mask=torch.from_numpy(mask),
            encoder_hidden_states=torch.from_numpy(question),
            encoder_attention_mask=torch.from_numpy(question_mask),
        ).logits.numpy()
    actual = jax.jit(decoder)(ids, mask, question, question_mask)
    real = mask > 0
    np.testing.assert_allclose(actual[real], logits[real], rtol=0, atol=TOLERANCE)
