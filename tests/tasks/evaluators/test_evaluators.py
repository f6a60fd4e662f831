"""Evaluators on a mesh of two devices, against the model called on one example at a time."""

import dataclasses
import tracemalloc

import jax
import numpy as np
import pytest
from PIL import Image

from capret_jax.checkpoints.loaded_model import LoadedModel
from capret_jax.config import MeshConfig
from capret_jax.data.tokenizer import CaptionEncoder, load_tokenizer
from capret_jax.distributed.mesh import make_mesh
from capret_jax.errors import InputError
from capret_jax.models.beam_search import BeamConfig
from capret_jax.models.caption_generation import SpecialTokens
from capret_jax.models.location_generation import write_locations
from capret_jax.models.x2vlm import abstract_model, bind, normalize_pixels
from capret_jax.tasks.evaluators import make_evaluator
from capret_jax.tasks.evaluators import matching as matching_module
from capret_jax.tasks.evaluators.captioning import decode_captions
from capret_jax.tasks.evaluators.grounding import to_pixels
from capret_jax.tasks.evaluators.pictures import read_picture
from capret_jax.tasks.evaluators.suite import RESULTS
from capret_jax.tasks.evaluators.texts import stack_tokens
from capret_jax.tasks.pictures import PictureFolder
from capret_jax.tasks.scorers.boxes import box_accuracy
from capret_jax.tasks.scorers.vqa import vqa_accuracy
from tests.tasks.files import WRITERS
from tests.tasks.runs import MODEL, TinyRun, random_params, tiny_run


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(), jax.devices()[:2])


@pytest.fixture(scope="module")
def params():
    return random_params()


@pytest.fixture(scope="module")
def model(params):
    return LoadedModel(params, MODEL, [], MODEL.image_size)


@pytest.fixture
def make_run(mesh, tmp_path):
    def make(name: str, **changes) -> TinyRun:
        task = dataclasses.replace(WRITERS[name](tmp_path), **changes)
        # Three rows a batch would not divide; 6 leave padding in the last batch of 8, 16 or 32.
        return tiny_run(task, tmp_path, mesh, batch_size=6)

    return make


def states(run, model, path):
    """Vision states of one picture."""
    pixels = read_picture(PictureFolder(run.config.task.images), path, MODEL.image_size)
    return np.asarray(model.encode_image(np.asarray(normalize_pixels(pixels[None]))))


def fused(run, model, path, text):
    ids, mask = (x[None] for x in run.encode(text))
    return model.fuse(model.encode_text(ids, mask), mask, states(run, model, path)), mask


def recalls(scores, own):
    """Recall at 1, 5 and 10 of a (Q, G) matrix, equal wrong scores first."""
    best = np.where(own, scores, -np.inf).max(axis=1, keepdims=True)
    ranks = ((scores >= best) & ~own).sum(axis=1)
    return [float((ranks < depth).mean()) for depth in (1, 5, 10)]


def test_retrieval_is_that_of_whole_matrices(make_run, model, params, monkeypatch):
    monkeypatch.setattr(matching_module, "CAPTIONS_PER_CALL", 3)
    run = make_run("retrieval", top_k=10)
    rows = run.test.rows
    texts = [text for row in rows for text in row.captions]
    owner = np.repeat(np.arange(len(rows)), 2)
    image_states = [states(run, model, row.image) for row in rows]
    images = np.concatenate([model.image_features(x) for x in image_states])
    encoded = [[x[None] for x in run.encode(text)] for text in texts]
    text_states = [model.encode_text(*tokens) for tokens in encoded]
    features = np.concatenate([model.text_features(x) for x in text_states])
    cosine = images @ features.T
    pairs = [(t, mask) for t, (_, mask) in zip(text_states, encoded, strict=True)]
    logits = np.array(
        [[model.match_logits(model.fuse(*pair, i))[0, 1] for pair in pairs] for i in image_states]
    )

    def candidates_only(scores, matches):
        kept = np.argsort(-scores, axis=1, kind="stable")[:, :10]
        result = np.full_like(matches, -100.0)
        np.put_along_axis(result, kept, np.take_along_axis(matches, kept, axis=1), axis=1)
        return result

    own = owner == np.arange(len(rows))[:, None]
    metrics = make_evaluator(run).measure(params).metrics
    names = ["tr_1", "tr_5", "tr_10", "ir_1", "ir_5", "ir_10"]
    before = recalls(cosine, own) + recalls(cosine.T, own.T)
    after = recalls(candidates_only(cosine, logits), own)
    after += recalls(candidates_only(cosine.T, logits.T), own.T)
    assert [metrics[f"cosine_{name}"] for name in names] == pytest.approx(before)
    assert [metrics[name] for name in names] == pytest.approx(after)
    assert before != after and metrics["pairs"] == 128 and metrics["texts"] == 16


def test_the_logits_of_pairs_are_those_of_single_pairs(make_run, model, params, monkeypatch):
    monkeypatch.setattr(matching_module, "CAPTIONS_PER_CALL", 3)
    run = make_run("retrieval", top_k=10)
    rows = run.test.rows
    seen = {}
    call = matching_module.PairMatcher.__call__

    def spy(self, params, candidates, images, texts):
        seen["result"] = candidates, call(self, params, candidates, images, texts)
        return seen["result"][1]

    monkeypatch.setattr(matching_module.PairMatcher, "__call__", spy)
    make_evaluator(run).measure(params)
    (by_image, by_text), matches = seen["result"]
    texts = [text for row in rows for text in row.captions]
    for image, place in ((0, 0), (3, 9), (7, 4)):
        pair = fused(run, model, rows[image].image, texts[by_image[image, place]])[0]
        expected = model.match_logits(pair)[0, 1]
        assert matches.texts[image, place] == pytest.approx(float(expected), abs=2e-3)
    for text, place in ((0, 0), (9, 7), (15, 3)):
        pair = fused(run, model, rows[by_text[text, place]].image, texts[text])[0]
        expected = model.match_logits(pair)[0, 1]
        assert matches.images[text, place] == pytest.approx(float(expected), abs=2e-3)
    assert np.ptp(matches.texts) > 0.02


def test_too_few_candidates_are_refused(make_run):
    with pytest.raises(InputError, match="task.top_k=5"):
        make_evaluator(make_run("retrieval", top_k=5))


def test_answers_are_the_best_of_the_list(make_run, model, params):
    run = make_run("vqa")
    # Five more questions about one picture, and one about another.
    texts = ["is it red?", "is it blue?", "plain?", "what is it?", "a picture?", "is it one?"]
    images = [run.test.rows[3].image] * 5 + [run.test.rows[1].image]
    more = [
        run.test.rows[0]._replace(image=image, question=text, question_id=100 + number)
        for number, (image, text) in enumerate(zip(images, texts, strict=True))
    ]
    run = dataclasses.replace(run, test=run.test._replace(rows=(*run.test.rows, *more)))
    results = make_evaluator(run).measure(params)
    listed = ["red", "green", "blue", "yellow", "black", "white", "pink", "brown", "dark"]
    encode = CaptionEncoder(run.encode.tokenizer, 16)
    ids, mask = (np.stack(x) for x in zip(*map(encode, listed), strict=True))
    expected = []
    for row in run.test.rows:
        question, token_mask = fused(run, model, row.image, row.question)
        ranked, _ = model.rank_answers(ids, mask, question, token_mask, 4)
        expected.append({"question_id": row.question_id, "answer": listed[int(ranked[0, 0])]})
    assert results.files["result.json"] == expected
    assert len({entry["answer"] for entry in expected}) > 2
    accuracies = [
        vqa_accuracy(entry["answer"], row.answers)
        for entry, row in zip(expected, run.test.rows, strict=True)
    ]
    assert results.metrics["accuracy"] == pytest.approx(np.mean(accuracies))
    assert results.metrics["unlisted"] == 0


def test_questions_without_answers_are_answered_without_accuracy(make_run, params):
    run = make_run("vqa")
    rows = tuple(row._replace(answers=(), weights=()) for row in run.test.rows)
    hidden = dataclasses.replace(run, test=run.test._replace(rows=rows, left_out=3))
    results = make_evaluator(hidden).measure(params)
    assert "accuracy" not in results.metrics and results.metrics["left_out"] == 3
    assert len(results.files["result.json"]) == len(rows)


def test_texts_are_padded_to_the_longest_and_no_more_is_held(make_run):
    encode = CaptionEncoder(make_run("vqa").encode.tokenizer, 512)
    encode._cached = encode._encode  # the cache has a limit of its own
    texts = ["a red picture", "is it a plain blue picture?"] * 200
    expected = [np.stack(x) for x in zip(*map(encode, texts), strict=True)]
    longest = int(expected[1].sum(axis=1).max())
    tracemalloc.start()
    tokens = stack_tokens(encode, texts)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    for got, want in zip(tokens, expected, strict=True):
        np.testing.assert_array_equal(got, want[:, :longest], strict=True)
    assert peak < expected[0].nbytes / 2


def test_prompt_and_caption_have_to_fit_the_positions(make_run):
    with pytest.raises(InputError, match="task.max_tokens=61 after 4 tokens .* at most 60"):
        make_evaluator(make_run("captioning", max_tokens=61))


def test_boxes_are_in_pixels_of_the_picture(make_run, model, params):
    run = make_run("grounding")
    results = make_evaluator(run).measure(params)
    boxes = []
    for row in run.test.rows:
        predicted = model.predict_boxes(fused(run, model, row.image, row.text)[0])
        boxes.append(to_pixels(predicted, np.array([row.size]))[0])
    got = [entry["box"] for entry in results.files["boxes.json"]]
    np.testing.assert_allclose(got, boxes, atol=0.02)
    annotated = np.array([row.box for row in run.test.rows])
    assert results.metrics["accuracy"] == box_accuracy(np.array(boxes), annotated)
    np.testing.assert_allclose(
        to_pixels([[0.5, 0.5, 0.5, 0.25]], np.array([[64, 48]])), [[16, 18, 32, 12]]
    )


def test_written_objects_are_in_pixels_with_the_files_ids(make_run, model, params):
    run = make_run("detection")
    results = make_evaluator(run).measure(params)
    entries = results.files["detections.json"]
    assert len(entries) == 3 * 8 * len(run.test.rows) and results.metrics["pictures"] == 16
    bound = bind(abstract_model(MODEL)[0], params)
    for row in run.test.rows:
        keys = jax.random.key(0)[None]
        written = write_locations(bound, states(run, model, row.image), keys, 0.4)
        ours = [entry for entry in entries if entry["image_id"] == row.image_id]
        boxes = to_pixels(written.boxes[0], np.array([[64, 48]]))
        scores = np.asarray(written.probabilities[0])
        best = np.argsort(-scores, axis=None, kind="stable")
        items, classes = np.unravel_index(best, scores.shape)
        np.testing.assert_allclose([entry["bbox"] for entry in ours], boxes[items], atol=0.02)
        assert [entry["category_id"] for entry in ours] == [*(10 * (classes + 1))]
        assert [entry["score"] for entry in ours] == pytest.approx([*scores.flat[best]], abs=1e-4)


def test_other_classes_than_the_files_are_refused(make_run):
    run = make_run("detection")
    other = dataclasses.replace(run.config.model, location_classes=13)
    with pytest.raises(InputError, match=r"has 8 categories, and the model writes 13 classes"):
        make_evaluator(
            dataclasses.replace(run, config=dataclasses.replace(run.config, model=other))
        )


def test_captions_continue_the_prompt(make_run, model, params):
    run = make_run("captioning", max_tokens=6)
    results = make_evaluator(run).measure(params)
    tokenizer = run.encode.tokenizer
    prompt = np.array(tokenizer("a picture of")["input_ids"])[:-1]
    assert len(prompt) > 1
    special = SpecialTokens(tokenizer.mask_token_id, tokenizer.sep_token_id)
    search = BeamConfig(beams=3, min_tokens=2, max_tokens=6)
    for row, entry in zip(run.test.rows, results.files["captions.json"], strict=True):
        ids, _ = model.write_captions(states(run, model, row.image), prompt, special, search)
        (expected,) = decode_captions(tokenizer, np.asarray(ids))
        assert entry == {"image_id": row.image_id, "caption": expected}
    assert results.metrics["images"] == 8 and results.metrics["BLEU_4"] >= 0


def test_a_broken_picture_is_named(make_run, params, tmp_path):
    run = make_run("captioning")
    path = tmp_path / "images" / run.test.rows[5].image
    path.write_bytes(b"no picture")
    with pytest.raises(InputError, match=path.name):
        make_evaluator(run).measure(params)


def test_apostrophes_and_marks_join_their_words(tmp_path):
    pieces = "[PAD] [UNK] [CLS] [SEP] [MASK] man ' s hat isn t red , un ##der .".split()
    (tmp_path / "vocab.txt").write_text("\n".join(pieces))
    tokenizer = load_tokenizer(str(tmp_path / "vocab.txt"))
    text = "man ' s hat isn ' t red , un ##der . [SEP] [PAD]".split()
    ids = np.array([tokenizer.convert_tokens_to_ids(text)])
    assert decode_captions(tokenizer, ids) == ["man's hat isn't red, under."]


def test_sentences_are_judged_from_both_pictures(make_run, model, params):
    run = make_run("nlvr2")
    results = make_evaluator(run).measure(params)
    graphdef, _ = abstract_model(MODEL)
    judged = []
    for row in run.test.rows:
        pair = [fused(run, model, path, row.sentence)[0] for path in row.images]
        logits = bind(graphdef, params).pair_logits(np.stack(pair, axis=1))
        judged.append(int(logits[0, 1] > logits[0, 0]))
    labels = [row.label for row in run.test.rows]
    assert results.metrics["accuracy"] == np.mean(np.equal(judged, labels))
    assert results.metrics["sentences"] == 16
    assert results.files["judgements.json"] == [
        {"identifier": row.identifier, "prediction": ["False", "True"][value]}
        for row, value in zip(run.test.rows, judged, strict=True)
    ]
    assert len(set(judged)) == 2 and set(results.files) <= RESULTS


def test_a_picture_is_squashed_as_pillow_does(make_run):
    run = make_run("grounding")
    folder, path = run.config.task.images, run.test.rows[0].image
    with Image.open(f"{folder}/{path}") as picture:
        expected = picture.resize((32, 32), Image.Resampling.BICUBIC)
    read = read_picture(PictureFolder(folder, "pillow"), path, 32)
    np.testing.assert_array_equal(read, np.asarray(expected))
