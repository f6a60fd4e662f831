"""Readers of the tasks' annotation files, and what they refuse or leave out."""

import dataclasses
import json
import pathlib
import pickle

import pytest
from PIL import Image

from capret_jax.errors import InputError
from capret_jax.tasks.examples import (
    AnnotatedPicture,
    ImageCaptions,
    PairSentence,
    ReferringExpression,
)
from capret_jax.tasks.readers import read_test, read_training
from capret_jax.tasks.readers.refer import Reference
from tests.tasks.files import LEFT, WRITERS, paint, write_json


@pytest.fixture(params=WRITERS)
def task(request, tmp_path):
    return WRITERS[request.param](tmp_path)


@pytest.fixture
def retrieval(tmp_path):
    return WRITERS["retrieval"](tmp_path)


@pytest.fixture
def vqa(tmp_path):
    return WRITERS["vqa"](tmp_path)


@pytest.fixture
def grounding(tmp_path):
    return WRITERS["grounding"](tmp_path)


def edit(path: str, change) -> None:
    """Replaces the content of a JSON file by what `change` returns, or makes of it in place."""
    values = json.loads(pathlib.Path(path).read_text())
    changed = change(values)
    write_json(pathlib.Path(path), values if changed is None else changed)


def change_first(**values):
    """Returns a function that changes values of the first entry; None removes a value."""

    def change(rows):
        rows[0] = {k: v for k, v in (rows[0] | values).items() if v is not None}

    return change


def test_captions_are_read_one_by_one_for_training_and_together_for_test(retrieval):
    train, test = read_training(retrieval), read_test(retrieval)
    assert len(train.rows) == 16 and len(test.rows) == 8
    assert train.rows[1] == ImageCaptions("val/picture_000001.png", "c_0", ("this is plain red",))
    captions = ("a red picture", "this is plain red")
    assert test.rows[0] == ImageCaptions("val/picture_000001.png", 1, captions)
    assert train.left_out == test.left_out == 0 and not train.notes + test.notes


def test_captions_of_a_picture_are_joined_for_captioning(tmp_path):
    config = WRITERS["captioning"](tmp_path)
    joined = read_test(dataclasses.replace(config, test=config.train[0]))
    assert len(joined.rows) == 8
    assert joined.rows[0].captions == ("a red picture", "this is plain red")
    assert joined.rows[0].image_id == "c_0"


def test_ids_of_pictures_repeat_in_retrieval_alone(tmp_path):
    for name in ("retrieval", "captioning"):
        config = WRITERS[name](tmp_path)
        for folder in "ab":
            paint(tmp_path / "images" / folder / "1.jpg", "red")
        rows = [{"image": f"{folder}/1.jpg", "caption": ["red"]} for folder in "ab"]
        edit(config.test, lambda _, rows=rows: rows)
        if name == "retrieval":
            assert len(read_test(config).rows) == 2
        else:
            with pytest.raises(InputError, match="has image_id 1 twice"):
                read_test(config)


def test_answers_have_their_shares_as_weights_and_genomes_half(vqa):
    first, second = read_training(vqa).rows[:2]
    assert first.answers == ("red",) * 8 + ("dark",) * 2
    assert first.weights == (0.8, 0.2)
    assert (second.answers, second.weights) == (("red",), (0.5,))
    edit(vqa.test, lambda rows: [{k: v for k, v in r.items() if k != "answer"} for r in rows])
    assert read_test(vqa).rows[0].answers == ()


@pytest.mark.parametrize("kind", ["pickle", "json"])
def test_phrases_get_the_boxes_of_their_references(grounding, kind, tmp_path):
    if kind == "json":
        values = pickle.loads(pathlib.Path(grounding.refs).read_bytes())
        grounding = dataclasses.replace(grounding, refs=write_json(tmp_path / "r.json", values))
    train, test = read_training(grounding), read_test(grounding)
    assert len(train.rows) == len(test.rows) == 16
    assert train.rows[0] == ReferringExpression(
        "train2014/COCO_train2014_000000000001.jpg", 0, "the red box", LEFT, (64, 48)
    )
    assert {row.ref_id for row in train.rows}.isdisjoint(row.ref_id for row in test.rows)


def test_sentences_have_labels_and_two_pictures(tmp_path):
    rows = read_test(WRITERS["nlvr2"](tmp_path)).rows
    pictures = ("val/picture_000001.png", "val/picture_000002.jpg")
    assert rows[1] == PairSentence(pictures, "both have one colour", 0, "dev-0-False")
    assert [row.label for row in rows[:4]] == [1, 0, 1, 0]


def test_a_missing_picture_is_counted_or_refused(task, tmp_path):
    pictures = sorted((tmp_path / "images").rglob("*.*"))
    whole = [read_training(task), read_test(task)]
    for picture in pictures[:2]:
        picture.unlink()
    for read in (read_training, read_test):
        with pytest.raises(InputError, match=r"examples are left out.*missing pictures.*allow_mis"):
            read(task)
    task = dataclasses.replace(task, allow_missing=True)
    rest = [read_training(task), read_test(task)]
    for before, after in zip(whole, rest, strict=True):
        assert 0 < after.left_out == len(before.rows) - len(after.rows)
        assert f"{after.left_out} of {len(before.rows)} examples are left out" in after.notes[0]


def test_one_missing_picture_in_a_hundred_is_only_counted(retrieval):
    edit(retrieval.train[0], lambda rows: rows * 10 + [rows[0] | {"image": "no.jpg"}])
    examples = read_training(retrieval)
    assert examples.left_out == 1 and "such as no.jpg" in examples.notes[0]


def test_without_any_picture_no_option_helps(task):
    task = dataclasses.replace(task, images="nowhere", allow_missing=True)
    with pytest.raises(InputError, match="missing pictures in task.images=nowhere.*right files"):
        read_test(task)


# Task, split, change of its file, and the message.
WRONG = {
    "a test file to train on": (
        "retrieval", "train", change_first(caption=["a", "b"]), "list of captions, as in a test"
    ),
    "a training file as test": (
        "retrieval", "test", change_first(caption="a"), "one caption, as in a training file"
    ),
    "a picture twice": (
        "retrieval", "test", lambda rows: [rows[0], rows[0]], "picture_000001.png once more"
    ),
    "no image_id": ("retrieval", "train", change_first(image_id=None), "has no 'image_id' .it has"),
    "a blank caption": ("captioning", "train", change_first(caption=" "), "entry 0 has caption"),
    "another format": ("captioning", "test", lambda _: {"images": []}, "holds a dict where a list"),
    "nothing": ("nlvr2", "test", lambda _: [], "an empty list"),
    "no object": ("nlvr2", "test", lambda _: [1], "entry 0 is a int"),
    "a path out of the folder": (
        "nlvr2", "test", change_first(images=["../a.png", "b.png"]), "outside of task.images"
    ),
    "questions without answers": (
        "vqa", "train", change_first(answer=None), "no 'answer', as in a test file"
    ),
    "answers to some questions": (
        "vqa", "test", change_first(answer=None), "answers to 7 of 8 questions"
    ),
    "nine answers": ("vqa", "train", change_first(answer=["red"] * 9), "9 answers where VQAv2"),
    "another dataset": ("vqa", "train", change_first(dataset="gqa"), "neither 'vqa' nor 'vg'"),
    "genomes as test": (
        "vqa", "test", change_first(dataset="vg", answer="red"), "for training alone"
    ),
    "a question twice": ("vqa", "test", change_first(question_id=1), "question_id 1 twice"),
    "other answers": (
        "vqa",
        "train",
        lambda rows: [row | {"answer": "x", "dataset": "vg"} for row in rows],
        "list of another dataset",
    ),
    "phrases of val to train on": (
        "grounding", "train", change_first(ref_id=2, image="2.jpg"), "split 'val': task.train"
    ),
    "phrases of two splits": (
        "grounding", "test", change_first(ref_id=0, image="1.jpg"), "train and val: task.test"
    ),
    "an unknown reference": ("grounding", "train", change_first(ref_id=99), "task.refs lacks"),
    "another picture": ("grounding", "train", change_first(image="3.jpg"), "of other data"),
    "one picture of two": (
        "nlvr2", "train", change_first(images=["a.png"]), "1 pictures where the left"
    ),
    "a number as label": ("nlvr2", "train", change_first(label=1), "neither True nor False"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_files_are_refused_by_name(case, tmp_path):
    name, split, change, message = WRONG[case]
    task = WRITERS[name](tmp_path)
    edit(task.test if split == "test" else task.train[0], change)
    read = read_test if split == "test" else read_training
    with pytest.raises(InputError, match=message) as error:
        read(task)
    assert str(tmp_path) in str(error.value) or "outside" in message


def test_files_that_are_no_json_are_named(retrieval, tmp_path):
    (tmp_path / "test.json").write_text('{"a": 1}\n{"a": 2}\n')
    with pytest.raises(InputError, match=r"test.json is no JSON file .*JSON lines"):
        read_test(retrieval)
    with pytest.raises(InputError, match="gone.json cannot be read: No such file"):
        read_test(dataclasses.replace(retrieval, test="gone.json"))


def test_questions_whose_answers_are_not_listed_are_counted(vqa):
    edit(vqa.answers, lambda answers: answers[1:-1])  # neither red nor dark
    for read, of in ((read_training, 16), (read_test, 8)):
        examples = read(vqa)
        unlisted = 2 if of == 16 else 1
        assert len(examples.rows) == of and examples.left_out == 0
        assert f"{unlisted} of {of} questions" in examples.notes[0]


@pytest.mark.parametrize(
    "answers, message",
    [
        (["red", "red"], "the answer 'red' twice"),
        (["red", 1], "has 1, which is no answer"),
        ({"red": 0}, "no list of answers"),
    ],
)
def test_a_wrong_list_of_answers_is_refused(vqa, answers, message):
    edit(vqa.answers, lambda _: answers)
    with pytest.raises(InputError, match=message):
        read_test(vqa)


def change_boxes(task, change) -> None:
    def convert(values):
        for annotation in values["annotations"]:
            annotation["bbox"] = change(*annotation["bbox"])

    edit(task.instances, convert)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda x, y, w, h: [x, y, x + w, y + h], "16 of 32 boxes .*corners x1, y1, x2, y2"),
        (lambda x, y, w, h: [x / 64, y / 48, w / 64, h / 48], "fractions of the picture"),
        (lambda x, y, w, h: [x, y, w], "no instances in COCO's format"),
        (lambda x, y, w, h: [x, y, 0, h], "32 of 32 boxes"),
    ],
)
def test_boxes_in_another_convention_are_refused(grounding, change, message):
    change_boxes(grounding, change)
    with pytest.raises(InputError, match=message):
        read_training(grounding)


def test_a_box_may_reach_out_by_two_pixels():
    box = (60.0, 0.0, 6.0, 4.0)
    assert Reference("val", "a.jpg", 1, (64, 48), box).possible
    assert not Reference("val", "a.jpg", 1, (64, 48), (*box[:2], 6.5, 4.0)).possible


def test_phrases_of_resized_pictures_are_counted_or_refused(grounding, tmp_path):
    name = tmp_path / "images/train2014/COCO_train2014_000000000001.jpg"
    Image.open(name).resize((32, 24)).save(name)
    with pytest.raises(InputError, match="2 of 16 examples.*size in task.instances"):
        read_training(grounding)
    examples = read_training(dataclasses.replace(grounding, allow_missing=True))
    assert examples.left_out == 2 and len(examples.rows) == 14


@pytest.mark.parametrize("orientation", [3, 6])
def test_phrases_of_turned_pictures_are_left_out(grounding, tmp_path, orientation):
    name = tmp_path / "images/train2014/COCO_train2014_000000000001.jpg"
    tag = Image.Exif()
    tag[0x0112] = orientation
    Image.open(name).save(name, exif=tag)
    examples = read_training(dataclasses.replace(grounding, allow_missing=True))
    assert examples.left_out == 2


def test_each_file_has_one_limit_for_all_reasons(grounding, tmp_path):
    rows = json.loads(pathlib.Path(grounding.train[0]).read_text())
    lost, resized, rest = rows[0], rows[2], rows[4:] * 10
    (tmp_path / "images" / lost["image"]).unlink()
    path = tmp_path / "images" / resized["image"]
    Image.open(path).resize((32, 24)).save(path)
    for bad in (lost, resized):
        edit(grounding.train[0], lambda _, bad=bad: [*rest, bad])
        assert read_training(grounding).left_out == 1
    small = write_json(tmp_path / "small.json", [lost, rows[4]])
    with pytest.raises(InputError, match="small.json: 1 of 2 examples"):
        read_training(dataclasses.replace(grounding, train=(*grounding.train, small)))
    edit(grounding.train[0], lambda _: [*rest, lost, resized])
    with pytest.raises(InputError, match="missing pictures.*size in task.instances.*allow_missing"):
        read_training(grounding)


class _Call:
    """A pickle of it calls what unpickles it to write a file."""

    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path("called"),)


@pytest.mark.parametrize(
    "content, message",
    [
        (pickle.dumps([_Call()]), "which no file of REFER needs"),
        (b"not a pickle", "is no pickle of REFER"),
        (pickle.dumps({"a": 1}), "holds a dict"),
        (pickle.dumps([{"a": 1}]), "no references of REFER"),
        (pickle.dumps([]), "has no reference"),
        (
            pickle.dumps([{"ref_id": 1, "ann_id": 7, "image_id": 1, "split": "val"}]),
            "annotation 7 in image 1.*do not belong together",
        ),
    ],
)
def test_wrong_references_are_refused_and_call_nothing(
    grounding, content, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    pathlib.Path(grounding.refs).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_test(grounding)
    assert not (tmp_path / "called").exists()


@pytest.fixture
def detection(tmp_path):
    return WRITERS["detection"](tmp_path)


def test_objects_are_corners_with_classes_by_the_order_of_ids(detection):
    train, test = read_training(detection), read_test(detection)
    assert len(test.rows) == 16 and train == test
    x, y, w, h = LEFT
    first = test.rows[0]
    assert first == AnnotatedPicture(
        "tiny/000000000000.png", 0, ((x, y, x + w, y + h),), (1,), ("red",)
    )
    assert test.rows[1].classes == (2, 5) and test.rows[1].names == ("green", "black")


def test_crowds_are_left_out_and_boxes_cut_at_the_edges(detection):
    def change(values):
        values["annotations"][0].update(bbox=[-5, -5, 20, 30])
        values["annotations"][1].update(iscrowd=1)
        values["images"].reverse()

    edit(detection.test, change)
    rows = {row.image_id: row for row in read_test(detection).rows}
    assert rows[0].boxes == ((0.0, 0.0, 15.0, 25.0),)
    assert rows[1].classes == (5,)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda values: values.pop("categories"), "no instances in COCO's format"),
        (lambda values: values.update(categories=[], annotations=[]), "has no categories"),
        (lambda values: values["annotations"][0].update(category_id=5), "no instances in COCO's"),
        (lambda values: values["annotations"][0].update(image_id=99), "no instances in COCO's"),
        (lambda values: values["annotations"].clear(), "has no objects: there is nothing to"),
        (lambda values: values["annotations"][0].update(bbox=[70, 5, 9, 9]), "1 of 24 boxes"),
        (lambda values: values["images"][0].update(file_name="../x.png"), "outside of task.images"),
    ],
)
def test_wrong_instances_are_refused(detection, change, message):
    edit(detection.test, lambda values: change(values) and None)
    with pytest.raises(InputError, match=message):
        read_test(detection)


def test_training_has_the_categories_of_the_test(detection, tmp_path):
    values = json.loads(pathlib.Path(detection.test).read_text())
    values["categories"][0]["id"] = 1
    for annotation in values["annotations"]:
        annotation.update({"category_id": 1} if annotation["category_id"] == 10 else {})
    other = write_json(tmp_path / "instances_other.json", values)
    with pytest.raises(InputError, match="other categories than task.test"):
        read_training(dataclasses.replace(detection, train=(other,)))
