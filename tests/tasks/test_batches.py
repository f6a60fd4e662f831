"""Training batches of each task: what a batch holds, and that its order can be repeated."""

import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image

from capret_jax.config.task import VQA_ANSWERS
from capret_jax.data.batch import IGNORED_LABEL
from capret_jax.data.pipeline import abstract_batch
from capret_jax.errors import InputError
from capret_jax.tasks.run import TaskRun
from tests.tasks.files import COLOURS, LEFT, RIGHT, WRITERS


@pytest.fixture
def batch_of(task_config, tmp_path):
    """Returns the run of a task and its first batch."""

    def make(name: str, **changes):
        config = task_config(name)
        augment = dataclasses.replace(config.data.augment, **changes)
        data = dataclasses.replace(config.data, augment=augment)
        run = TaskRun(dataclasses.replace(config, data=data), tmp_path)
        return run, next(run.training_batches())

    return make


@pytest.mark.parametrize("name", WRITERS)
def test_batches_have_the_shapes_that_plans_assume(name, batch_of):
    run, batch = batch_of(name)
    expected = abstract_batch(run.config)
    shapes = jax.tree.map(lambda x: (x.shape, np.dtype(x.dtype)), batch)
    assert shapes == jax.tree.map(lambda x: (x.shape, np.dtype(x.dtype)), expected)
    assert batch.valid.all()


@pytest.mark.parametrize("name", WRITERS)
def test_a_batch_depends_on_seed_and_step_alone(name, task_config, tmp_path):
    run = TaskRun(task_config(name), tmp_path)
    iterator, again = run.training_batches(), run.training_batches()
    next(iterator)
    again.set_state(iterator.get_state())
    jax.tree.map(np.testing.assert_array_equal, next(iterator), next(again))


def colours_of(images: np.ndarray) -> list[str]:
    """Returns the name of the colour nearest to each picture's mean."""
    table = np.array(list(COLOURS.values()))
    means = images.reshape(len(images), -1, 3).mean(axis=1)
    nearest = np.abs(table - means[:, None]).sum(axis=-1).argmin(axis=1)
    return [list(COLOURS)[i] for i in nearest]


def decode(run, ids) -> list[str]:
    return run.encode.tokenizer.batch_decode(ids, skip_special_tokens=True)


def test_captions_are_of_their_pictures_and_identities(batch_of):
    run, batch = batch_of("retrieval")
    by_identity: dict[int, str] = {}
    texts = decode(run, batch.token_ids)
    for colour, text, identity in zip(
        colours_of(batch.image), texts, batch.identity.tolist(), strict=True
    ):
        assert colour in text
        assert by_identity.setdefault(identity, colour) == colour
    assert len(set(batch.caption_id.tolist())) == len(batch.caption_id)
    np.testing.assert_array_equal(batch.box, [[0.5, 0.5, 1, 1]] * len(texts))


def test_questions_have_all_distinct_answers_with_their_weights(batch_of):
    run, batch = batch_of("vqa")
    colours = colours_of(batch.image)
    weights = batch.answer_weight.reshape(-1, VQA_ANSWERS)
    answers = np.array(decode(run, batch.answer_ids)).reshape(-1, VQA_ANSWERS)
    for question, colour, row, weight in zip(
        decode(run, batch.question_ids), colours, answers, weights, strict=True
    ):
        if question.startswith("what"):
            assert row[:2].tolist() == [colour, "dark"]
            np.testing.assert_allclose(weight, [0.8, 0.2] + [0] * 8)
        else:
            assert row[0] == colour
            np.testing.assert_allclose(weight, [0.5] + [0] * 9)


@pytest.mark.parametrize("words, tokens", [(1, 10), (20, 22), (40, 32)])
def test_answers_are_whole_up_to_a_limit_that_is_said(batch_of, words, tokens, capsys):
    run, _ = batch_of("vqa")
    rows = [row._replace(answers=("red " * words,), weights=(1.0,)) for row in run.train.rows]
    run.train = run.train._replace(rows=tuple(rows))
    assert next(run.training_batches()).answer_ids.shape[1] == tokens
    assert ("1 answers are cut to 32 tokens" in capsys.readouterr().out) == (words == 40)


CROPPED = {"region_crop": True, "flip": 0.5}


def pixels_in(batch, row: int) -> np.ndarray:
    """Returns the mean colour at the middle of an example's box."""
    size = batch.image.shape[1]
    cx, cy = (batch.box[row, :2] * size).astype(int)
    return batch.image[row, cy - 1 : cy + 2, cx - 1 : cx + 2].reshape(-1, 3).mean(axis=0)


@pytest.mark.parametrize("changes", [{}, {"flip": 1.0}, {"region_crop": True}, CROPPED])
def test_boxes_follow_their_phrases_through_views_and_flips(batch_of, changes):
    run, batch = batch_of("grounding", **changes)
    for row, text in enumerate(decode(run, batch.token_ids)):
        colour = COLOURS[text.split()[1]]
        assert np.abs(pixels_in(batch, row) - colour).max() < 25, text
    if not changes:
        expected = {(x + w / 2) / 64 for x, _, w, _ in (LEFT, RIGHT)}
        assert {round(float(x), 4) for x in batch.box[:, 0]} == {round(x, 4) for x in expected}


def test_a_phrase_that_mentions_a_side_is_not_flipped(batch_of, monkeypatch):
    run, flipped = batch_of("grounding", flip=1.0)
    rows = [row._replace(text=f"{row.text} on the left") for row in run.train.rows]
    run.train = run.train._replace(rows=tuple(rows))
    kept = next(run.training_batches())
    np.testing.assert_array_equal(kept.image, flipped.image[:, :, ::-1])
    np.testing.assert_allclose(kept.box[:, 0], 1 - flipped.box[:, 0], atol=1e-6)


@pytest.mark.parametrize("field", ["question", "answers"])
def test_a_question_about_sides_is_not_flipped(batch_of, field, tmp_path):
    run, flipped = batch_of("vqa", flip=1.0)
    paint_halves(tmp_path / "files" / "images", run.train.rows)
    flipped = next(run.training_batches())
    if field == "question":
        rows = [row._replace(question=f"{row.question} on the left") for row in run.train.rows]
    else:
        rows = [row._replace(answers=("right",), weights=(1.0,)) for row in run.train.rows]
    run.train = run.train._replace(rows=tuple(rows))
    kept = next(run.training_batches())
    np.testing.assert_array_equal(kept.image, flipped.image[:, :, ::-1])
    assert (kept.image != flipped.image).any()


def paint_halves(folder, rows) -> None:
    """Replaces the pictures by ones whose left half is red and right half blue."""
    for path in {row.image for row in rows}:
        pixels = np.zeros((48, 64, 3), np.uint8)
        pixels[:, :32, 0] = pixels[:, 32:, 2] = 200
        Image.fromarray(pixels).save(folder / path)


def test_sentences_have_their_left_and_then_their_right_picture(batch_of):
    _, batch = batch_of("nlvr2")
    colours = np.array(colours_of(batch.image)).reshape(-1, 2)
    np.testing.assert_array_equal(batch.pair_label, colours[:, 0] == colours[:, 1])


def test_captions_follow_their_prompt_which_is_never_masked(batch_of):
    run, batch = batch_of("captioning")
    tokenizer = run.encode.tokenizer
    prompt = tokenizer(run.config.data.captions.prompt)["input_ids"][:-1]
    assert (batch.masked_ids[:, : len(prompt)] == prompt).all()
    used = batch.masked_labels != IGNORED_LABEL
    rows, positions = np.nonzero(used)[0], batch.masked_positions[used]
    assert used.any(axis=1).all() and positions.min() >= len(prompt)
    # Each inserted [MASK] stands before the token that it predicts.
    assert (batch.masked_ids[rows, positions] == tokenizer.mask_token_id).all()
    written = np.where(batch.masked_ids == tokenizer.mask_token_id, 0, batch.masked_ids)
    for text, whole in zip(decode(run, batch.token_ids), decode(run, written), strict=True):
        assert whole == f"a picture of {text}"


def test_a_batch_larger_than_the_training_files_is_refused(task_config, tmp_path):
    run = TaskRun(task_config("nlvr2", batch_size=24), tmp_path)
    with pytest.raises(InputError, match="batch_size=24 needs as many .*there are 16"):
        run.training_batches()


def test_a_picture_that_vanishes_in_training_is_named(task_config, tmp_path):
    run = TaskRun(task_config("retrieval"), tmp_path)
    for picture in (tmp_path / "files" / "images").rglob("*.*"):
        picture.unlink()
    with pytest.raises(InputError, match="the picture .*cannot be read: No such file"):
        next(run.training_batches())


def test_objects_follow_their_pictures(task_config, tmp_path):
    config = task_config("detection")
    run = TaskRun(config, tmp_path)
    batch = next(run.training_batches())
    size, seen = batch.image.shape[1], 0
    for image, boxes, classes in zip(
        batch.image, batch.objects.box, batch.objects.category, strict=True
    ):
        for (cx, cy, w, h), number in zip(boxes, classes, strict=True):
            if number and min(w, h) * size > 5:
                x, y = int(cx * size), int(cy * size)
                colour = COLOURS[list(COLOURS)[number - 1]]
                assert np.abs(image[y, x].astype(int) - colour).max() < 40
                seen += 1
    assert seen > 10
    # A picture that holds none is learnt, too.
    assert batch.objects.image is None and (batch.objects.category > 0).any(axis=1).mean() < 1


def test_of_more_objects_than_the_model_writes_the_number_is_said(task_config, tmp_path, capsys):
    config = task_config("detection")
    model = dataclasses.replace(config.model, location_items=1)
    run = TaskRun(dataclasses.replace(config, model=model), tmp_path)
    batch = next(run.training_batches())
    assert "8 of 16 pictures have more than 1 objects" in capsys.readouterr().out
    assert batch.objects.category.shape == (16, 1)
