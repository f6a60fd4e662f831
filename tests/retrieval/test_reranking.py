"""Re-ranking: orders computed by hand, and scores of the model called on each pair."""

import jax
import numpy as np
import pytest

from capret_jax.checkpoints.loaded_model import LoadedModel
from capret_jax.config import MeshConfig
from capret_jax.data.tokenizer import CaptionEncoder, build_vocabulary, load_tokenizer
from capret_jax.distributed.mesh import make_mesh, replicated
from capret_jax.models.x2vlm import init_params
from capret_jax.retrieval import reranking as module
from capret_jax.retrieval.engines import Neighbours
from capret_jax.retrieval.reranking import Matcher, best_phrases, cross_fit, rerank
from capret_jax.retrieval.vision_tokens import VisionTokens
from tests.small_model import SMALL_MODEL

TEXTS = ["a red dress", "trousers", "a vest with stripes"]


def test_the_match_moves_candidates_and_leaves_the_rest_behind():
    found = Neighbours(np.array([[7, 5, 9, 1]]), np.array([[0.9, 0.8, 0.7, 0.6]], np.float32))
    match = np.array([[0.1, 0.2, 0.9]], np.float32)
    ranked = rerank(found, match, 0.5)
    # 0.95, 0.9, 1.15; the fourth was not judged.
    np.testing.assert_array_equal(ranked.rows, [[9, 7, 5, 1]])
    np.testing.assert_allclose(ranked.scores, [[1.15, 0.95, 0.9, 0.6]], rtol=1e-6)
    np.testing.assert_array_equal(rerank(found, match, 0.0).rows, found.rows)


def test_no_query_chooses_its_own_weight():
    # Queries 0 and 1 gain from the match, 2 and 3 lose.
    found = Neighbours(np.tile([0, 1], (4, 1)), np.tile(np.float32([0.5, 0.4]), (4, 1)))
    match = np.tile(np.float32([0.0, 1.0]), (4, 1))
    right = np.array([1, 1, 0, 0])

    def quality(each):
        return (each.rows[:, 0] == right).astype(float)

    fitted = cross_fit(found, match, quality, np.array([True, True, False, False]))
    # The first half is ranked with the weight of the second, 0, and the other way round.
    assert fitted.weights[0] == 0.0 and fitted.weights[1] > 0.1
    np.testing.assert_array_equal(fitted.neighbours.rows[:, 0], [0, 0, 1, 1])


@pytest.fixture(scope="module")
def matcher(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    build_vocabulary(TEXTS, path, 100)
    encode = CaptionEncoder(load_tokenizer(str(path)), 8)
    model = LoadedModel(init_params(SMALL_MODEL, jax.random.key(1)), SMALL_MODEL, [], 32)
    return Matcher(model, encode)


def tokens(rows):
    states = np.stack([np.random.default_rng(row).normal(size=(5, 64)) for row in rows])
    return VisionTokens(
        states.astype(np.float16), np.arange(5) <= 1 + np.asarray(rows)[:, None] % 4
    )


def test_pairs_in_groups_are_pairs_one_by_one(matcher, monkeypatch):
    rows = np.array([[0, 1, 2], [3, 1, 0], [2, 2, 5]])
    together = matcher.candidates(TEXTS, rows, tokens)
    model, encode = matcher._model, matcher._encode
    monkeypatch.setattr(module, "_PAIRS", 2)
    in_pairs = Matcher(model, encode).candidates(TEXTS, rows, tokens)
    np.testing.assert_allclose(in_pairs, together, atol=1e-5)
    mesh = make_mesh(MeshConfig(), jax.devices())
    spread = LoadedModel(
        jax.device_put(model.params, replicated(mesh)), model.config, [], model.config.image_size
    )
    on_all = Matcher(spread, encode, mesh).candidates(TEXTS, rows, tokens)
    np.testing.assert_allclose(on_all, together, atol=1e-5)
    for i, text in enumerate(TEXTS):
        ids, mask = encode(text)
        states = model.encode_text(ids[None], mask[None])
        for j, row in enumerate(rows[i]):
            image = tokens([row])
            fused = model.fuse(
                states, mask[None], image.states.astype(np.float32), image.mask.astype(np.float32)
            )
            expected = jax.nn.softmax(model.match_logits(fused))[0, 1]
            np.testing.assert_allclose(together[i, j], expected, atol=1e-5)
    assert np.ptp(together) > 1e-4


def test_the_best_phrase_is_the_one_that_matches_most(matcher):
    rows = np.arange(6)
    every = matcher.candidates(TEXTS, np.tile(rows, (3, 1)), tokens)
    np.testing.assert_array_equal(best_phrases(matcher, TEXTS, rows, tokens), every.argmax(axis=0))
